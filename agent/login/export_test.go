package login

// Parse is parse.
var Parse = parse

// Languages is languages.
var Languages = languages
