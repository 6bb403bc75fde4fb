package notary_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/portvakt/portvakt/gateway/audit/notary"
)

// A gateway goes on signing while somebody looks for a record in a long log, and
// removes the hashes that only the checkpoint before needed.
func TestAProofOfALogThatIsBeingSigned(t *testing.T) {
	o := newOffice(t)
	o.write(300)
	o.mustSign()
	looked := 0
	p, err := notary.Prove(o.log, o.tree, o.verifier, func(line []byte) bool {
		if looked++; looked == 100 {
			o.write(300)
			o.mustSign()
		}
		return strings.Contains(string(line), "d-0250")
	})
	if err != nil || p.Seq != 250 {
		t.Fatalf("%+v %v", p, err)
	}
	if c, err := notary.CheckProof(p, o.verifier); err != nil || c.Size != 600 {
		t.Errorf("%+v %v", c, err)
	}
}

// Verify takes a checkpoint with the tree that it is of, although the gateway
// signs the next one just then.
func TestVerifyALogThatIsBeingSigned(t *testing.T) {
	o, _ := newArchive(t, 150)
	before, checkpoint := o.checkpoint(), filepath.Join(o.tree, notary.FileCheckpoint)
	o.write(60)
	o.mustSign()
	after := o.checkpoint()
	// Who opens the checkpoint gets the one before, and the tree is the later one's.
	if err := errors.Join(os.Remove(checkpoint), syscall.Mkfifo(checkpoint, 0o600)); err != nil {
		t.Fatal(err)
	}
	signed := make(chan error, 1)
	go func() {
		f, err := os.OpenFile(checkpoint, os.O_WRONLY, 0)
		if err != nil {
			signed <- err
			return
		}
		_, err = f.Write(before)
		next := checkpoint + ".next"
		signed <- errors.Join(err, os.WriteFile(next, after, 0o600), os.Rename(next, checkpoint), f.Close())
	}()
	rep, err := notary.Verify(o.log, o.tree, o.verifier)
	if err := errors.Join(err, <-signed); err != nil || rep.Signed != int64(o.records) {
		t.Errorf("%+v %v", rep, err)
	}
	// What is damaged for good is still said.
	if err := os.RemoveAll(filepath.Join(o.tree, "tile")); err != nil {
		t.Fatal(err)
	}
	if _, err := notary.Verify(o.log, o.tree, o.verifier); !errors.Is(err, notary.ErrChanged) {
		t.Errorf("without hashes: %v", err)
	}
	if _, err := notary.Prove(o.log, o.tree, o.verifier, func([]byte) bool { return true }); err == nil || errors.Is(err, notary.ErrUnsigned) {
		t.Errorf("without hashes: %v", err)
	}
}
