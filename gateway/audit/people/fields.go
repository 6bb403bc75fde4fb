package people

import "path/filepath"

// Field is one sort of personal data, which has keys of its own: it can expire
// while others are kept.
type Field int

// The Fields, in the order of their names.
const (
	Address Field = iota // from where somebody came
	Device               // what is known of a laptop
	Facts                // what a decision was made on; it holds all others
	Person               // who it was, and what was known of them
	Request              // what was asked of an app

	fields
)

var names = [fields]string{"address", "device", "facts", "person", "request"}

// Names are those of all Fields, in the order of their numbers.
func Names() []string { return append([]string(nil), names[:]...) }

// String returns the name of a Field.
func (f Field) String() string { return names[f] }

// dir is where a Field's keys are. Those of Person are where all of a day's were
// before there were others, so that what was sealed then is still opened.
func (f Field) dir() string {
	if f == Person {
		return ""
	}
	return names[f]
}

// file names the file with a day's key.
func (f Field) file(date string) string { return filepath.Join(f.dir(), dayFile+date) }
