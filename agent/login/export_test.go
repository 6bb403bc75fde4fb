package login

// Parse is parse.
var Parse = parse
