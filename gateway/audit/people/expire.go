package people

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Erase destroys the key of the person of that ID, on the disk first; also an
// older one of the same name that [Keys.Expire] could not destroy.
func (k *Keys) Erase(id string) error {
	k.saving.Lock()
	defer k.saving.Unlock()
	k.mu.RLock()
	p := k.byID[id]
	var all []*person
	for _, other := range k.byID {
		if p != nil && other.name == p.name {
			all = append(all, other)
		}
	}
	k.mu.RUnlock()
	if p == nil {
		return ErrErased
	}
	for _, p := range all {
		if err := k.destroy(p.id); err != nil {
			return err
		}
		k.mu.Lock()
		k.remove(p)
		k.mu.Unlock()
	}
	return k.syncDirs()
}

// Due lists the days before a time, and the people nothing was sealed of since.
func (k *Keys) Due(before time.Time) (days, persons []string) {
	limit := before.UTC().Format(dayForm)
	k.mu.RLock()
	defer k.mu.RUnlock()
	for date := range k.days {
		if date < limit {
			days = append(days, date)
		}
	}
	for id, p := range k.byID {
		if p.seen < limit {
			persons = append(persons, id)
		}
	}
	return days, persons
}

// NotAfter takes people who were seen on days that have not come at now, because
// the machine's clock was ahead, for seen that day: they would be kept until then.
func (k *Keys) NotAfter(now time.Time) error {
	today := now.UTC().Format(dayForm)
	k.mu.Lock()
	for _, p := range k.byID {
		if p.seen > today {
			p.seen = today
			k.changes.Add(1)
		}
	}
	k.mu.Unlock()
	return k.Save()
}

// DueOf lists the days before a time of which a field can be opened.
func (k *Keys) DueOf(f Field, before time.Time) (days []string) {
	limit := before.UTC().Format(dayForm)
	k.mu.RLock()
	defer k.mu.RUnlock()
	for date, d := range k.days {
		if date < limit && d[f] != nil {
			days = append(days, date)
		}
	}
	return days
}

// ExpireOf destroys what [Keys.DueOf] listed.
func (k *Keys) ExpireOf(f Field, days []string) error {
	k.saving.Lock()
	defer k.saving.Unlock()
	if err := k.noteDestroyed(f, days); err != nil {
		return err
	}
	for _, date := range days {
		if err := k.expire(f, date); err != nil {
			return err
		}
	}
	return k.syncDirs()
}

// Expire destroys what [Keys.Due] listed before that time; somebody who came
// back since then stays.
func (k *Keys) Expire(before time.Time, days, persons []string) error {
	limit := before.UTC().Format(dayForm)
	k.saving.Lock()
	defer k.saving.Unlock()
	for f := range fields {
		if err := k.noteDestroyed(f, days); err != nil {
			return err
		}
		for _, date := range days {
			if err := k.expire(f, date); err != nil {
				return err
			}
		}
	}
	for _, id := range persons {
		if err := k.forget(id, limit); err != nil {
			return err
		}
	}
	return k.syncDirs()
}

// expire destroys a field's key of a day. saving is held.
func (k *Keys) expire(f Field, date string) error {
	if err := k.destroy(f.file(date)); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := k.days[date]; d != nil {
		if d[f] = nil; *d == (day{}) {
			delete(k.days, date)
		}
	}
	for _, p := range k.byID { // what was made of it goes too
		if s := p.latest.Load(); s != nil && s.day == date {
			p.latest.Store(nil)
		}
	}
	return nil
}

// forget destroys the key of a person of whom nothing was sealed since the day
// limit. From the moment that is certain nobody is given the key any more: who
// comes back then is somebody new. saving is held.
func (k *Keys) forget(id, limit string) error {
	k.mu.Lock()
	p := k.byID[id]
	if p == nil || p.seen >= limit {
		k.mu.Unlock()
		return nil
	}
	k.remove(p)
	k.mu.Unlock()
	err := k.destroy(id)
	if err != nil { // it is still there, and due
		k.mu.Lock()
		k.byID[id] = p
		if k.byName[p.name] == nil {
			k.byName[p.name] = p
		}
		k.mu.Unlock()
	}
	return err
}

// remove takes a person out of the maps. mu is held.
func (k *Keys) remove(p *person) {
	delete(k.byID, p.id)
	if k.byName[p.name] == p {
		delete(k.byName, p.name)
	}
}

// destroy wipes a key's file. saving is held.
func (k *Keys) destroy(name string) error {
	k.changed[filepath.Dir(k.path(name))] = true
	return wipe(k.path(name))
}

// wipe overwrites a file before it removes it: not every file system forgets
// what was removed.
func wipe(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // it never was on the disk, or a crash came after the removal
	}
	if err != nil {
		return fmt.Errorf("destroying a key: %w", err)
	}
	st, err := f.Stat()
	if err == nil {
		_, err = f.WriteAt(make([]byte, st.Size()), 0)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("destroying a key: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("destroying a key: %w", err)
	}
	return nil
}
