package people

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/renameio/v2"
)

// destroyedFile names, by field, the last day whose key expired.
const destroyedFile = "destroyed.json"

// loadDestroyed reads until which day keys were destroyed: those of all days
// until then. A key that such a day has all the same was made anew, because the
// machine's clock showed that day again.
func (k *Keys) loadDestroyed() error {
	file := filepath.Join(k.dir, destroyedFile)
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	until := map[string]string{}
	if err == nil {
		err = json.Unmarshal(text, &until)
	}
	for f := range fields {
		date := until[f.String()]
		if date == "" {
			continue
		}
		if _, terr := time.Parse(dayForm, date); terr != nil && err == nil {
			err = terr
		}
		k.destroyed[f] = date
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w; restore it from a backup, or remove it: what cannot be opened is then shown as unreadable, not as expired", file, err)
	}
	return nil
}

// noteDestroyed stores that the keys of a field are about to be destroyed until
// the last of days. saving is held.
func (k *Keys) noteDestroyed(f Field, days []string) error {
	k.mu.RLock()
	next := k.destroyed
	k.mu.RUnlock()
	if len(days) == 0 || slices.Max(days) <= next[f] {
		return nil
	}
	next[f] = slices.Max(days)
	until := map[string]string{}
	for f, date := range next {
		if date != "" {
			until[Field(f).String()] = date
		}
	}
	text, err := json.Marshal(until)
	if err == nil {
		err = renameio.WriteFile(filepath.Join(k.dir, destroyedFile), append(text, '\n'), 0o600, renameio.WithTempDir(k.dir))
	}
	if err == nil {
		err = syncDir(k.dir)
	}
	if err != nil {
		return fmt.Errorf("destroying a key: noting it: %w", err)
	}
	k.mu.Lock()
	k.destroyed = next
	k.mu.Unlock()
	return nil
}
