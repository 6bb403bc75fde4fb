package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/portvakt/portvakt/gateway"
	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/notary"
)

// evidence says where the log to check is and with which key.
type evidence struct{ dir, key string }

func (e *evidence) flags(c *cobra.Command) {
	c.Flags().StringVar(&e.dir, "dir", "", "the audit `directory` (default: data_dir/audit of the configuration)")
	c.Flags().StringVar(&e.key, "key", "", "verifier key, or a `file` with it (default: tree/verifier.key; a key you kept elsewhere proves more)")
}

func (e *evidence) log() string  { return filepath.Join(e.dir, "audit.jsonl") }
func (e *evidence) tree() string { return filepath.Join(e.dir, "tree") }

// mark reads what the gateway itself signed last, if that is here: nothing, or a
// checkpoint.
func (e *evidence) mark() ([][]byte, error) {
	msg, err := os.ReadFile(filepath.Join(filepath.Dir(e.dir), "keys", notary.FileMark))
	if err == nil && len(msg) == 0 || errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading what was signed last: %w", err)
	}
	return [][]byte{msg}, nil
}

// open finds the directory and reads the key.
func (e *evidence) open(opt *options) (note.Verifier, error) {
	if e.dir == "" {
		socket, err := gateway.FindSocket(opt.config)
		if err != nil {
			return nil, usageError{fmt.Errorf("%w; or name the directory with --dir", err)}
		}
		e.dir = filepath.Join(filepath.Dir(socket), "audit")
	}
	key := e.key
	if key == "" {
		key = filepath.Join(e.tree(), notary.FileVerifier)
	}
	text, err := os.ReadFile(key)
	switch {
	case err == nil:
		key = string(text)
	case e.key == "":
		return nil, fmt.Errorf("reading the verifier key: %w; a gateway writes it when it first signs", err)
	}
	v, err := notary.ParseVerifier(key)
	if err != nil {
		return nil, usageError{fmt.Errorf("--key: %w", err)}
	}
	return v, nil
}

func auditVerifyCmd(opt *options) *cobra.Command {
	var (
		where   evidence
		outside cosigned
		earlier []string
		proof   string
	)
	c := &cobra.Command{
		Use: "verify", Short: "Check that the decision log is the one that was signed", Args: cobra.NoArgs,
		Long: `Check the whole decision log against its latest signed checkpoint, and against
every earlier checkpoint you kept elsewhere: what was signed then must still be
there, unchanged. It needs no running gateway; copies of the audit directory
on another machine do. Of a log that was changed it names the first record that
is not the one that was signed, and ends with exit code 1.

A checkpoint and the key that were on the same machine as the log show that
nobody changed the log alone. Only a checkpoint (tree/checkpoint) and a key
(tree/verifier.key) that you took away before show that nobody with full control
of that machine did. So does a checkpoint that a witness cosigned
(audit.witness in the configuration): with --witness-key the newest one,
tree/cosigned or the file of --cosigned, has to hold as well.

With --proof check one record's proof, made by "audit prove", and nothing else.`,
		Example: `  portvakt-gateway audit verify
  portvakt-gateway audit verify --checkpoint may.checkpoint --checkpoint june.checkpoint --key verifier.key
  portvakt-gateway audit verify --witness-key witness.key
  portvakt-gateway audit verify --dir /media/copy/audit --json
  portvakt-gateway audit verify --proof d-5c0e.json --key verifier.key`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if proof != "" {
				return verifyProof(cmd.OutOrStdout(), opt, where.key, proof)
			}
			v, err := where.open(opt)
			if err != nil {
				return err
			}
			kept, err := where.mark()
			if err != nil {
				return err
			}
			for _, name := range earlier {
				msg, err := os.ReadFile(name)
				if err != nil {
					return usageError{fmt.Errorf("--checkpoint: %w", err)}
				}
				kept = append(kept, msg)
			}
			seen, msg, err := outside.open(where.tree(), v)
			if err != nil {
				return err
			}
			if msg != nil {
				kept = append(kept, msg)
			}
			rep, err := notary.Verify(where.log(), where.tree(), v, kept...)
			if err != nil {
				return err
			}
			return printReport(cmd.OutOrStdout(), opt.json, rep, len(earlier), seen)
		},
	}
	where.flags(c)
	outside.flags(c)
	c.Flags().StringArrayVar(&earlier, "checkpoint", nil, "an earlier checkpoint's `file`; repeatable")
	c.Flags().StringVar(&proof, "proof", "", "check this proof's `file` instead of a log")
	return c
}

// cosigned says which witness's checkpoint has to hold too, if any.
type cosigned struct{ key, file string }

func (o *cosigned) flags(c *cobra.Command) {
	c.Flags().StringVar(&o.key, "witness-key", "", "key of the witness, or a `file` with it: what it cosigned has to hold too")
	c.Flags().StringVar(&o.file, "cosigned", "", "the cosigned checkpoint's `file` (default: tree/cosigned; one you kept elsewhere proves more)")
}

// open reads the cosigned checkpoint of a tree whose log signs with v; it is nil
// when no witness was named.
func (o *cosigned) open(tree string, v note.Verifier) (notary.Cosigned, []byte, error) {
	if o.key == "" {
		if o.file != "" {
			return notary.Cosigned{}, nil, usageError{errors.New("--cosigned needs --witness-key: the key of the witness that cosigned it")}
		}
		return notary.Cosigned{}, nil, nil
	}
	key := o.key
	if text, err := os.ReadFile(key); err == nil {
		key = string(text)
	}
	w, err := notary.ParseWitness(key)
	if err != nil {
		return notary.Cosigned{}, nil, usageError{fmt.Errorf("--witness-key: %w", err)}
	}
	file := o.file
	if file == "" {
		file = filepath.Join(tree, notary.FileCosigned)
	}
	msg, err := os.ReadFile(file)
	if err != nil {
		return notary.Cosigned{}, nil, fmt.Errorf("reading the cosigned checkpoint: %w", err)
	}
	c, err := notary.OpenCosigned(msg, v, w)
	if err != nil {
		return notary.Cosigned{}, nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, msg, nil
}

// printReport prints what was found; seen is zero without a witness.
func printReport(w io.Writer, asJSON bool, rep notary.Report, earlier int, seen notary.Cosigned) error {
	c := rep.Signing
	if asJSON {
		out := map[string]any{
			"ok": true, "first": rep.First, "records": rep.Records, "signed": rep.Signed, "earlier_checkpoints": earlier,
			"root": c.Root.String(), "signed_at": c.Time.UTC().Format(time.RFC3339), "key": rep.Verifier,
		}
		if !seen.At.IsZero() {
			out["cosigned"], out["cosigned_at"] = seen.Size, seen.At.Format(time.RFC3339)
		}
		return printJSON(w, out)
	}
	holds := fmt.Sprintf("%d records, %d of them signed", rep.Records, rep.Signed-rep.First+1)
	if rep.First > 1 {
		holds += fmt.Sprintf("; those before %d were removed by retention, and are still signed", rep.First)
	}
	rows := [][]string{
		{"the log holds", holds},
		{"signed at", c.Time.UTC().Format(time.RFC3339)},
		{"root", c.Root.String()},
		{"key", rep.Verifier},
		{"earlier checkpoints", strconv.Itoa(earlier) + " checked"},
	}
	if !seen.At.IsZero() {
		rows = append(rows, []string{"cosigned", fmt.Sprintf("the first %d records, by the witness at %s", seen.Size, seen.At.Format(time.RFC3339))})
	}
	return table(w, rows)
}

func verifyProof(w io.Writer, opt *options, key, file string) error {
	if key == "" {
		return usageError{errors.New("--proof needs --key: the verifier key of the gateway that made it")}
	}
	if text, err := os.ReadFile(key); err == nil {
		key = string(text)
	}
	v, err := notary.ParseVerifier(key)
	if err != nil {
		return usageError{fmt.Errorf("--key: %w", err)}
	}
	f, err := os.Open(file)
	if err != nil {
		return usageError{fmt.Errorf("--proof: %w", err)}
	}
	defer f.Close()
	p, err := notary.ReadProof(f)
	if err != nil {
		return err
	}
	c, err := notary.CheckProof(p, v)
	if err != nil {
		return err
	}
	if opt.json {
		return printJSON(w, map[string]any{"ok": true, "seq": p.Seq, "records": c.Size, "signed_at": c.Time.UTC().Format(time.RFC3339), "record": json.RawMessage(p.Record)})
	}
	_, err = fmt.Fprintf(w, "record %d is in the log of %d records that was signed at %s:\n%s\n", p.Seq, c.Size, c.Time.UTC().Format(time.RFC3339), p.Record)
	return err
}

func auditProveCmd(opt *options) *cobra.Command {
	var (
		where evidence
		out   string
	)
	c := &cobra.Command{
		Use: "prove ID", Short: "Write a proof that one record is in the signed log", Args: one("ID", "audit tail"),
		Long: `Write a proof that the record with that decision ID or sequence number is in the
signed log: the record, the checkpoint and the hashes between them, as JSON. It
shows nothing of other records, and whoever has the verifier key checks it with

  portvakt-gateway audit verify --proof FILE --key KEY`,
		Example: "  portvakt-gateway audit prove d-5c0e -o proof.json",
		RunE: func(cmd *cobra.Command, a []string) error {
			v, err := where.open(opt)
			if err != nil {
				return err
			}
			p, err := notary.Prove(where.log(), where.tree(), v, called(a[0]))
			if err != nil {
				return err
			}
			if out == "" {
				return printJSON(cmd.OutOrStdout(), p)
			}
			var b bytes.Buffer
			if err := printJSON(&b, p); err != nil {
				return err
			}
			if err := os.WriteFile(out, b.Bytes(), 0o600); err != nil {
				return fmt.Errorf("writing the proof: %w", err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s proves record %d\n", out, p.Seq)
			return err
		},
	}
	where.flags(c)
	c.Flags().StringVarP(&out, "output", "o", "", "the `file` to write (default: standard output)")
	return c
}

// called picks the record with that decision ID or number. Only the record of
// the decision itself counts, or the one it was folded into as the first or the
// last, not those that mention it.
func called(id string) func([]byte) bool {
	seq, err := strconv.ParseUint(id, 10, 63)
	numbered := err == nil
	want := []byte(strconv.Quote(id))
	return func(line []byte) bool {
		if numbered {
			return bytes.HasPrefix(line, []byte(`{"seq":`+strconv.FormatUint(seq, 10)+","))
		}
		if !bytes.Contains(line, want) {
			return false
		}
		var r audit.Record
		return json.Unmarshal(line, &r) == nil && r.Names(id)
	}
}
