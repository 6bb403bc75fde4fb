package policy

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// Problem is one thing that is wrong with the policy directory.
type Problem struct {
	// File is its path, Line its line (0: the file as a whole) and Key the path
	// of the key within the file ("access[0].hours.zone"; empty: none).
	File string
	Line int
	Key  string
	// Text says what was expected and what was found.
	Text string
}

// Error returns "file:line: key: text" without the parts that are empty.
func (p Problem) Error() string {
	s := p.File
	if p.Line > 0 {
		s = fmt.Sprintf("%s:%d", s, p.Line)
	}
	if p.Key != "" {
		s += ": " + p.Key
	}
	return s + ": " + p.Text
}

// Problems is everything that is wrong, one a line.
type Problems []Problem

// Error returns the first ten Problems, one a line.
func (ps Problems) Error() string {
	const most = 10
	lines := make([]string, 0, most+1)
	for i, p := range ps {
		if i == most {
			lines = append(lines, fmt.Sprintf("and %d more", len(ps)-most))
			break
		}
		lines = append(lines, p.Error())
	}
	return strings.Join(lines, "\n")
}

// Limits that keep the YAML parser, whose work grows with the square of the
// nesting, within milliseconds. A file of the catalogue nests five deep.
const (
	maxNesting = 50
	maxDashes  = 20
)

// yamlFile reads one YAML file of the catalogue. It collects Problems instead
// of stopping at the first, so that one look mends a file.
type yamlFile struct {
	path     string
	problems Problems
}

func (f *yamlFile) fail(n ast.Node, key, format string, args ...any) {
	f.problems = append(f.problems, Problem{File: f.path, Line: lineOf(n), Key: key, Text: fmt.Sprintf(format, args...)})
}

// parse returns the mapping a file consists of, or nil after a Problem.
func (f *yamlFile) parse(src []byte) ast.Node {
	if line := tooNested(src); line > 0 {
		f.problems = append(f.problems, Problem{File: f.path, Line: line, Text: fmt.Sprintf("wanted at most %d brackets or %d dashes within one another, found more", maxNesting, maxDashes)})
		return nil
	}
	doc, err := parser.ParseBytes(src, 0)
	if err != nil {
		p := Problem{File: f.path, Text: "wanted YAML: " + firstLine(err.Error())}
		var at yaml.Error
		if errors.As(err, &at) {
			p.Text = "wanted YAML: " + at.GetMessage()
			if t := at.GetToken(); t != nil && t.Position != nil {
				p.Line = t.Position.Line
			}
		}
		f.problems = append(f.problems, p)
		return nil
	}
	if len(doc.Docs) != 1 {
		f.problems = append(f.problems, Problem{File: f.path, Text: fmt.Sprintf("wanted one app, found %d YAML documents; give every app a file of its own", len(doc.Docs))})
		return nil
	}
	if body := doc.Docs[0].Body; body != nil {
		return body
	}
	f.problems = append(f.problems, Problem{File: f.path, Text: "wanted an app, found an empty file"})
	return nil
}

func tooNested(src []byte) (line int) {
	depth, number := 0, 0
	for l := range bytes.Lines(src) {
		number++
		dashes := 0
		for _, c := range l {
			if c != '-' && c != '?' && c != ' ' {
				break
			}
			if c != ' ' {
				dashes++
			}
		}
		depth += bytes.Count(l, []byte("[")) + bytes.Count(l, []byte("{"))
		if depth > maxNesting || dashes > maxDashes && !bytes.HasPrefix(l, []byte("---")) {
			return number
		}
		depth = max(0, depth-bytes.Count(l, []byte("]"))-bytes.Count(l, []byte("}")))
	}
	return 0
}

// field is one key of a mapping.
type field struct {
	key, value ast.Node
	path       string // of the key within the file
}

// mapping returns n's fields by key. Keys outside known are Problems.
func (f *yamlFile) mapping(n ast.Node, path string, known []string) map[string]field {
	var values []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		values = m.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{m}
	default:
		f.fail(n, path, "wanted keys (%s), found %s", strings.Join(known, ", "), describe(n))
		return nil
	}
	fields := make(map[string]field, len(values))
	for _, v := range values {
		key, ok := v.Key.(*ast.StringNode)
		if !ok {
			f.fail(v.Key, path, "wanted a plain key, found %s", describe(v.Key))
			continue
		}
		at := join(path, key.Value)
		if known != nil && !slices.Contains(known, key.Value) {
			f.fail(key, at, "unknown key%s; the keys here are %s", DidYouMean(key.Value, known...), strings.Join(known, ", "))
			continue
		}
		if _, twice := fields[key.Value]; twice {
			f.fail(key, at, "wanted the key once, found it twice")
			continue
		}
		fields[key.Value] = field{key: key, value: v.Value, path: at}
	}
	return fields
}

// list returns n's elements; ok is false after a Problem.
func (f *yamlFile) list(n ast.Node, path string) (elements []ast.Node, ok bool) {
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		f.fail(n, path, "wanted a list, found %s", describe(n))
		return nil, false
	}
	if len(s.Values) == 0 {
		// An empty list could be meant as "none" or as "no condition".
		f.fail(n, path, "wanted at least one element; leave the key out if it is not needed")
		return nil, false
	}
	return s.Values, true
}

// text returns a scalar's text; ok is false after a Problem.
func (f *yamlFile) text(n ast.Node, path string) (text string, ok bool) {
	switch s := n.(type) {
	case *ast.StringNode:
		text = s.Value
	case *ast.LiteralNode:
		text = s.Value.Value
	default:
		f.fail(n, path, "wanted text, found %s%s", describe(n), quoteHint(n))
		return "", false
	}
	if strings.TrimSpace(text) != text || text == "" || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }) {
		f.fail(n, path, "wanted text on one line without spaces around it, found %q", text)
		return "", false
	}
	return text, true
}

// texts returns a list of distinct texts that all pass check, which returns
// what was wanted of a text that is wrong, or "".
func (f *yamlFile) texts(fd field, check func(string) string) []string {
	elements, ok := f.list(fd.value, fd.path)
	if !ok {
		return nil
	}
	out := make([]string, 0, len(elements))
	for i, e := range elements {
		at := fmt.Sprintf("%s[%d]", fd.path, i)
		s, ok := f.text(e, at)
		if !ok {
			continue
		}
		if wanted := check(s); wanted != "" {
			f.fail(e, at, "wanted %s, found %q", wanted, s)
			continue
		}
		if slices.Contains(out, s) {
			f.fail(e, at, "wanted every element once, found %q twice", s)
			continue
		}
		out = append(out, s)
	}
	return out
}

func (f *yamlFile) flag(fd field) bool {
	b, ok := fd.value.(*ast.BoolNode)
	if !ok {
		f.fail(fd.value, fd.path, "wanted true or false, found %s", describe(fd.value))
		return false
	}
	return b.Value
}

func (f *yamlFile) ports(fd field) []uint16 {
	elements, ok := f.list(fd.value, fd.path)
	if !ok {
		return nil
	}
	var out []uint16
	for i, e := range elements {
		at := fmt.Sprintf("%s[%d]", fd.path, i)
		number, ok := e.(*ast.IntegerNode)
		var port uint64
		if ok {
			port, ok = number.Value.(uint64)
		}
		switch {
		case !ok || port == 0 || port > 65535:
			f.fail(e, at, "wanted a port from 1 to 65535, found %s", describe(e))
		case slices.Contains(out, uint16(port)):
			f.fail(e, at, "wanted every port once, found %d twice", port)
		default:
			out = append(out, uint16(port))
		}
	}
	return out
}

func lineOf(n ast.Node) int {
	if n == nil {
		return 0
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		return t.Position.Line
	}
	return 0
}

// describe names what a node is, for people who do not know YAML's words.
func describe(n ast.Node) string {
	switch n := n.(type) {
	case nil, *ast.NullNode:
		return "nothing"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "keys"
	case *ast.SequenceNode:
		return "a list"
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode:
		return "a YAML anchor, alias or merge key, which are not supported here: write it out"
	case *ast.TagNode:
		return "a YAML tag, which is not supported here"
	case *ast.StringNode:
		return fmt.Sprintf("%q", n.Value)
	default:
		if t := n.GetToken(); t != nil {
			return firstLine(t.Value)
		}
		return "something else"
	}
}

func quoteHint(n ast.Node) string {
	switch n.(type) {
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return ", which is no text; put it in quotes"
	}
	return ""
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// oneOf checks that a text is one of words.
func oneOf(words ...string) func(string) string {
	return func(s string) string {
		switch {
		case slices.Contains(words, s):
			return ""
		case len(words) == 1:
			return words[0]
		}
		return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
	}
}
