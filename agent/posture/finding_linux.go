package posture

import (
	"io"
	"strings"

	"github.com/portvakt/portvakt/internal/wire"
)

// maxValue bounds a signal's value, in bytes.
const maxValue = 256

// finding is a signal without its name.
type finding struct{ state, value string }

func pass(value string) finding    { return finding{wire.SignalPass, value} }
func fail(value string) finding    { return finding{wire.SignalFail, value} }
func unknown(cause string) finding { return finding{wire.SignalUnknown, cause} }

// signal makes one of a finding; values are one bounded line of text.
func (f finding) signal(name string) wire.Signal {
	v := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(f.value, "?"))
	for len(v) > maxValue {
		v = strings.ToValidUTF8(v[:maxValue], "")
	}
	return wire.Signal{Name: name, State: f.state, Value: v}
}

// readBounded reads at most limit bytes and says whether that was all.
func readBounded(r io.Reader, limit int64) (data []byte, all bool, err error) {
	data, err = io.ReadAll(io.LimitReader(r, limit+1))
	if int64(len(data)) > limit {
		return nil, false, err
	}
	return data, err == nil, err
}
