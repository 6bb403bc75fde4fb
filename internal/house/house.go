// Package house holds the test that keeps the directions of imports: who may
// know whom, and which large dependencies may appear where. It has no code.
package house
