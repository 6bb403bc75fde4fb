package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/export"
	"github.com/portvakt/portvakt/gateway/audit/people"
)

// auditTail streams records as they are in the log: the last n, then, with
// follow, each new one.
func (s *Server) auditTail(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	n, err := strconv.Atoi(q.Get("n"))
	if err != nil || n < 0 {
		s.fail(w, http.StatusBadRequest, "bad_request", fmt.Sprintf("-n %s: expected how many records to show, 0 for all", q.Get("n")))
		return
	}
	denied, follow := q.Get("denied") != "", q.Get("follow") != ""
	s.looked(r, "audit log")
	// What was refused before policy was asked is a refusal too.
	wanted := func(rec *audit.Record) bool {
		return !denied || (rec.Allow != nil && !*rec.Allow) || strings.HasSuffix(string(rec.Kind), "_refused") ||
			(rec.Kind == audit.KindFolded && strings.HasSuffix(rec.Detail["kind"], "_refused"))
	}

	var last [][]byte
	var seq uint64
	err = audit.Scan(s.cfg.Audit.Path(), func(line []byte, rec *audit.Record) bool {
		seq = rec.Seq
		if wanted(rec) {
			last = append(last, append([]byte(nil), line...))
			if n > 0 && len(last) > n {
				last = last[1:]
			}
		}
		return true
	})
	if err != nil {
		s.failed(w, "reading the audit log", err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	rc := http.NewResponseController(w)
	write := func(line []byte) bool {
		var rec audit.Record
		err := json.Unmarshal(line, &rec)
		if err == nil {
			line, err = s.cfg.Audit.Reveal(line, &rec)
		}
		if err != nil {
			s.log.Error("reading the audit log", "err", err)
			return false
		}
		_, err = w.Write(append(line[:len(line):len(line)], '\n'))
		return err == nil
	}
	for _, line := range last {
		if !write(line) {
			return
		}
	}
	if !follow || rc.Flush() != nil {
		return
	}
	err = audit.Follow(r.Context(), s.cfg.Audit.Path(), false, func(line []byte, rec *audit.Record) bool {
		if rec.Seq <= seq || !wanted(rec) {
			return true
		}
		return write(line) && rc.Flush() == nil
	})
	if err != nil && r.Context().Err() == nil {
		s.log.Error("following the audit log", "err", err)
	}
}

func (s *Server) auditShow(w http.ResponseWriter, r *http.Request) {
	line, rec, err := s.cfg.Audit.Find(r.PathValue("id"))
	if err != nil {
		s.fail(w, http.StatusNotFound, "not_found", err.Error())
		return
	}
	s.looked(r, "record "+r.PathValue("id"))
	if r.URL.Query().Get("input") != "" {
		if rec.Erased {
			s.fail(w, http.StatusNotFound, "erased", "What that decision was made on was erased.")
			return
		}
		if slices.Contains(rec.Expired, people.Facts.String()) {
			s.fail(w, http.StatusNotFound, "expired", "What that decision was made on has expired (audit.retention.fields).")
			return
		}
		if slices.Contains(rec.Unreadable, people.Facts.String()) {
			s.fail(w, http.StatusNotFound, "unreadable", "What that decision was made on cannot be opened; the gateway's log says why.")
			return
		}
		if rec.Input == nil {
			s.fail(w, http.StatusNotFound, "not_found", "That record was not decided by policy, so it has no input.")
			return
		}
		line = rec.Input
	}
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write(append(line, '\n')); err != nil {
		s.log.Debug("answering an administrator", "err", err)
	}
}

// export streams the records of a time in one of the export formats. A fault
// in the middle breaks the connection off, so that half an export is never
// taken for a whole one.
func (s *Server) export(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	format, ok := export.Formats[q.Get("format")]
	if !ok {
		s.fail(w, http.StatusBadRequest, "bad_request", fmt.Sprintf("--format %q: expected one of %s", q.Get("format"), strings.Join(export.Names, ", ")))
		return
	}
	var within export.Range
	for name, to := range map[string]*time.Time{"since": &within.Since, "until": &within.Until} {
		if v := q.Get(name); v != "" {
			t, err := time.Parse(time.RFC3339, v)
			if err != nil {
				s.fail(w, http.StatusBadRequest, "bad_request", fmt.Sprintf("--%s %q: expected a time such as 2026-12-24T22:00:00+01:00", name, v))
				return
			}
			*to = t
		}
	}
	node := s.cfg.URL
	if u, err := url.Parse(s.cfg.URL); err == nil && u.Host != "" {
		node = u.Host
	}
	s.looked(r, "audit log, exported as "+q.Get("format"))
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if _, err := export.Write(w, export.Log{File: s.cfg.Audit.Path(), Reveal: s.cfg.Audit.Reveal}, node, within, format, q.Get("format")); err != nil {
		if r.Context().Err() == nil {
			s.log.Error("exporting the audit log", "err", err)
		}
		panic(http.ErrAbortHandler)
	}
}

// revisionHeader says which revision a bundle is.
const revisionHeader = "Portvakt-Revision"

var revisionName = regexp.MustCompile(`^[A-Za-z0-9-]{1,100}$`)

// bundle sends the OPA bundle of the active revision or of one that was.
func (s *Server) bundle(w http.ResponseWriter, r *http.Request) {
	rev := r.URL.Query().Get("revision")
	if rev == "" {
		active := s.cfg.Engine.Active()
		if active == nil {
			s.fail(w, http.StatusNotFound, "policy_unavailable", "No policy revision is active yet.")
			return
		}
		rev = active.ID()
	}
	if !revisionName.MatchString(rev) {
		s.fail(w, http.StatusBadRequest, "bad_request", "That is not the name of a revision.")
		return
	}
	f, err := os.Open(filepath.Join(s.cfg.Bundles, rev+".tar.gz"))
	if errors.Is(err, os.ErrNotExist) {
		s.fail(w, http.StatusNotFound, "not_found", "That revision was never active on this gateway.")
		return
	}
	if err != nil {
		s.failed(w, "opening the bundle", err)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/gzip")
	w.Header().Set(revisionHeader, rev)
	if _, err := io.Copy(w, f); err != nil {
		s.log.Debug("sending a bundle", "err", err)
	}
}
