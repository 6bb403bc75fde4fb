package policy

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// WriteBundle writes r as an OPA bundle, with which the stock
//
//	opa eval -b bundle.tar.gz -i input.json data.portvakt.decision
//
// answers as the Engine did. The same Revision gives the same bytes.
func (r *Revision) WriteBundle(w io.Writer) error {
	manifest, err := json.Marshal(map[string]any{
		"revision":     r.id,
		"roots":        []string{"portvakt", "portvakt_catalogue"},
		"rego_version": 1,
	})
	if err != nil {
		return fmt.Errorf("writing policy bundle: %w", err)
	}
	zip := gzip.NewWriter(w)
	archive := tar.NewWriter(zip)
	for _, f := range append([]bundleFile{{name: ".manifest", data: manifest}}, r.files...) {
		h := &tar.Header{
			Typeflag: tar.TypeReg,
			Name:     f.name,
			Mode:     0o644,
			Size:     int64(len(f.data)),
			ModTime:  time.Unix(0, 0),
			Format:   tar.FormatPAX,
		}
		if err := archive.WriteHeader(h); err != nil {
			return fmt.Errorf("writing policy bundle: %w", err)
		}
		if _, err := archive.Write(f.data); err != nil {
			return fmt.Errorf("writing policy bundle: %w", err)
		}
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("writing policy bundle: %w", err)
	}
	if err := zip.Close(); err != nil {
		return fmt.Errorf("writing policy bundle: %w", err)
	}
	return nil
}
