package main

// requests: that what was decided on is what happens.
var requests = []mutant{
	{
		name: "underscore_header", breaks: "X_Forwarded_For passes for another name than X-Forwarded-For",
		edit: edit{
			"gateway/proxy/headers.go",
			"		return '-'\n	}, name)", "		return r\n	}, name)",
		},
		pkg: "./gateway/proxy", test: "TestCorpora/go",
	},
	{
		name: "canonical_skipped", breaks: "dot segments and // pass",
		edit: edit{
			"gateway/proxy/canonical.go",
			"	if err := checkSegments(t.path); err != nil {", "	if err := checkSegments(\"/\"); err != nil {",
		},
		pkg: "./gateway/proxy", test: "TestCorpora/go",
	},
	{
		name: "delimiters_decoded", breaks: "%2B reaches the app as +",
		edit: edit{
			"gateway/proxy/canonical.go",
			"kind == unreserved || !encoded && kind&bare != 0 {", "kind&bare != 0 {",
		},
		pkg: "./gateway/proxy", test: "TestKept/go",
	},
	{
		name: "own_cookie_told", breaks: "an app gets the gateway's cookies",
		edit: edit{
			"gateway/proxy/direct.go",
			"			values = theirCookies(values)\n", "			_ = theirCookies\n",
		},
		pkg: "./gateway/proxy", test: "TestGatewayCookiesReachNoApp",
	},
	{
		name: "own_cookie_set", breaks: "an https app sets the gateway's cookies",
		edit: edit{
			"gateway/proxy/forward.go",
			"	dropOurCookies(h)\n", "	_ = dropOurCookies\n",
		},
		pkg: "./gateway/proxy", test: "TestGatewayCookiesReachNoApp",
	},
	{
		name: "any_scheme", breaks: "a request by plain http may come over HTTP/2",
		edit: edit{
			"gateway/proxy/front.go",
			"	if r.ProtoMajor == 2 && r.TLS == nil {", "	if r.ProtoMajor == 3 && r.TLS == nil {",
		},
		pkg: "./gateway/proxy", test: "TestAnotherSchemeIsRefused",
	},
	{
		name: "forwarded_as_it_came", breaks: "the app gets another target than policy saw",
		edit: edit{
			"gateway/proxy/direct.go",
			"	dst = append(dst, x.req.target.escaped...)", "	dst = append(dst, r.URL.EscapedPath()...)",
		},
		pkg: "./gateway/proxy", test: "TestCorpora/go",
	},
	{
		name: "lane_target", breaks: "an https app gets another target than policy saw",
		edit: edit{
			"gateway/proxy/forward.go",
			"Opaque: x.req.target.escaped + x.req.target.query}", "Opaque: pr.In.URL.RequestURI()}",
		},
		pkg: "./gateway/proxy", test: "TestCorpora/https",
	},
	{
		name: "lane_headers", breaks: "a device tells an https app who asks",
		edit: edit{
			"gateway/proxy/forward.go",
			"	dropReserved(out.Header)\n", "	_ = dropReserved\n",
		},
		pkg: "./gateway/proxy", test: "TestCorpora/https",
	},
	{
		name: "lane_trailers", breaks: "a device tells an https app who asks, behind the body",
		edit: edit{
			"gateway/proxy/forward.go",
			"		if !trailerAllowed(name, named) {", "		if name == \"\" && named[name] {",
		},
		pkg: "./gateway/proxy", test: "TestCorpora/h2",
	},
	{
		name: "aborted_goes_on", breaks: "an exchange that was cut while its app was dialled goes on",
		edit: edit{
			"gateway/proxy/direct.go",
			"		c.Abort()\n		return false\n	}\n	h.conn = c", "		_ = c.Abort\n	}\n	h.conn = c",
		},
		pkg: "./gateway/proxy", test: "TestAbortedExchangesHoldNothing",
	},
	{
		name: "direct_trailers", breaks: "a device's trailers may be any header of an http app's",
		edit: edit{
			"gateway/proxy/headers.go",
			"	return !reserved(name) && afterBody(name, named)", "	return !reserved(name) && (afterBody(name, named) || named != nil)",
		},
		pkg: "./gateway/proxy", test: "TestTrailersToApps/http",
	},
	{
		name: "direct_nominated", breaks: "a header that is about the device's connection reaches an http app",
		edit: edit{
			"gateway/proxy/direct.go",
			"!ordinary[name] && reserved(name) || named[name] {", "!ordinary[name] && reserved(name) {",
		},
		pkg: "./gateway/proxy", test: "TestTrailersToApps/http",
	},
	{
		name: "lane_speaks_for_us", breaks: "an https app says behind a body what only the gateway says",
		edit: edit{
			"gateway/proxy/forward.go",
			"		if !trailerReturns(name, x.named) {", "		if !afterBody(name, x.named) {",
		},
		pkg: "./gateway/proxy", test: "TestTrailersOfApps",
	},
	{
		name: "lane_repeats", breaks: "an https app gets a request twice under one record",
		edit: edit{
			"gateway/proxy/lane.go",
			"	case b.sent > 0 &&", "	case b.sent > 9 &&",
		},
		pkg: "./gateway/proxy", test: "TestOneRecordOneRequest",
	},
	{
		name: "lane_not_aborted", breaks: "what waits for an app leaves after the cut",
		edit: edit{
			"gateway/proxy/lane.go",
			"		abort(x.backend.conn)\n	}\n	x.backend.cancel()\n", "		_ = abort\n	}\n	x.backend.cancel()\n",
		},
		pkg: "./gateway/proxy", test: "TestWhatWaitsForAnAppDies",
	},
	{
		name: "lane_first_byte", breaks: "a request leaves for an https app although the gateway stood still while it shook hands",
		edit: edit{
			"gateway/proxy/lane.go",
			"	lapsed := x.flow.Check() != nil ", "	lapsed := x.flow == nil ",
		},
		pkg: "./gateway/proxy", test: "TestNoRequestLeavesAfterALapse",
	},
	{
		name: "direct_first_byte", breaks: "an http app is asked once more although the gateway stood still meanwhile",
		edit: edit{
			"gateway/proxy/direct.go",
			"	if err := x.flow.Check(); err != nil {\n		return http1.Head{}, err\n	}\n	wait := p", "	wait := p",
		},
		pkg: "./gateway/proxy", test: "TestNothingIsAskedAgainAfterALapse",
	},
	{
		name: "lease_of_uploads", breaks: "a gateway that stood still passes a piece of an upload",
		edit: edit{
			"gateway/proxy/forward.go",
			"	if cut := b.x.flow.Check(); cut != nil {\n		return 0, cut\n	}\n	if b.app != nil && n > 0 {", "	if b.app != nil && n > 0 {",
		},
		pkg: "./gateway/proxy", test: "TestNothingPassesAfterALapse",
	},
	{
		name: "lane_lease", breaks: "a gateway that stood still passes a piece of an https app's answer",
		edit: edit{
			"gateway/proxy/forward.go",
			"	if cut := b.x.flow.Check(); cut != nil {\n		return 0, cut\n	}\n	switch {\n	case errors.Is(err, io.EOF):\n		b.x.drop", "	switch {\n	case errors.Is(err, io.EOF):\n		b.x.drop",
		},
		pkg: "./gateway/proxy", test: "TestNothingPassesAfterALapse",
	},
	{
		name: "direct_lease", breaks: "a gateway that stood still passes a piece of an http app's answer",
		edit: edit{
			"gateway/proxy/direct.go",
			"		if cut := x.flow.Check(); cut != nil {\n			return cut\n		}\n		if errors.Is(err, io.EOF) {", "		if errors.Is(err, io.EOF) {",
		},
		pkg: "./gateway/proxy", test: "TestNothingPassesAfterALapse",
	},
	{
		name: "direct_end", breaks: "a gateway that stood still passes the trailers of an http app's answer, and its end",
		edit: edit{
			"gateway/proxy/direct.go",
			"		if cut := x.flow.Check(); cut != nil {\n			return cut\n		}\n		if errors.Is(err, io.EOF) {\n			break\n		}\n",
			"		if errors.Is(err, io.EOF) {\n			break\n		}\n		if cut := x.flow.Check(); cut != nil {\n			return cut\n		}\n",
		},
		pkg: "./gateway/proxy", test: "TestNoAnswerPassesAfterALapse",
	},
	{
		name: "lane_head", breaks: "a gateway that stood still passes the head of an https app's answer",
		edit: edit{
			"gateway/proxy/forward.go",
			"	if cut := x.flow.Check(); cut != nil {\n		return cut\n	}\n	dropOurs(res.Header)", "	dropOurs(res.Header)",
		},
		pkg: "./gateway/proxy", test: "TestNoAnswerPassesAfterALapse",
	},
	{
		name: "lane_interim", breaks: "a gateway that stood still passes what an https app says before its answer",
		edit: edit{
			"gateway/proxy/forward.go",
			"		if c.x.flow.Check() != nil {\n			return\n		}\n", "",
		},
		pkg: "./gateway/proxy", test: "TestNoAnswerPassesAfterALapse",
	},
	{
		name: "interim_speaks_for_us", breaks: "an https app says before its answer what only the gateway says",
		edit: edit{
			"gateway/proxy/forward.go",
			"		dropOurs(c.Header())\n", "",
		},
		pkg: "./gateway/proxy", test: "TestInformationalAnswersAreCleaned",
	},
	{
		name: "direct_interim", breaks: "a gateway that stood still passes what an http app says before its answer",
		edit: edit{
			"gateway/proxy/direct.go",
			"	if err := x.flow.Check(); err != nil {\n		return err\n	}\n	h := w.Header()\n	pass(h, head.Fields)\n", "	h := w.Header()\n	pass(h, head.Fields)\n",
		},
		pkg: "./gateway/proxy", test: "TestNoAnswerPassesAfterALapse",
	},
	{
		name: "socket_lease_down", breaks: "a gateway that stood still passes a message of the app's",
		edit: edit{
			"gateway/proxy/forward.go",
			"	if cut := u.x.flow.Check(); cut != nil {\n		return 0, cut\n	}\n	u.x.out.Add", "	u.x.out.Add",
		},
		pkg: "./gateway/proxy", test: "TestNothingPassesAfterALapse",
	},
	{
		name: "socket_lease_up", breaks: "a gateway that stood still passes a message to the app",
		edit: edit{
			"gateway/proxy/forward.go",
			"	if cut := u.x.flow.Check(); cut != nil {\n		return 0, cut\n	}\n	n, err := u.ReadWriteCloser.Write(b)", "	n, err := u.ReadWriteCloser.Write(b)",
		},
		pkg: "./gateway/proxy", test: "TestNothingPassesAfterALapse",
	},
	{
		name: "query_unhashed", breaks: "the record's hash is of a part of the request",
		edit: edit{
			"gateway/proxy/front.go",
			"r.target.escaped, r.target.query, \"\\n\"} {", "r.target.escaped, \"\\n\"} {",
		},
		pkg: "./gateway/proxy", test: "TestCorpora/go",
	},
	{
		name: "cl_te_accepted", breaks: "a request may have two lengths",
		edit: edit{
			"gateway/http1/fields.go",
			"	case lengths > 0 && encodings > 0:", "	case lengths > 2 && encodings > 2:",
		},
		pkg: "./gateway/proxy", test: "TestCorpora/go",
	},
	{
		name: "any_host", breaks: "a request may name another host than the app's",
		edit: edit{
			"gateway/proxy/front.go",
			"	if !ok {\n		return req, misdirected(\"host\", r.Host, app)", "	if !ok && host == \"\" {\n		return req, misdirected(\"host\", r.Host, app)",
		},
		pkg: "./gateway/proxy", test: "TestCorpora/go",
	},
	{
		name: "any_handshake", breaks: "a handshake may name another host than the app's",
		edit: edit{
			"gateway/proxy/front.go",
			"	if name != \"\" && !slices.Contains(app.Hosts, name) {", "	if name == \"?\" {",
		},
		pkg: "./gateway/proxy", test: "TestTheHandshakeNamesTheApp",
	},
	{
		name: "part_for_the_whole", breaks: "a device that stops within a body is waited for",
		edit: edit{
			"gateway/proxy/wait.go",
			"	case !w.app:\n		x.conn.reset()\n", "	case !w.app:\n",
		},
		pkg: "./gateway/proxy", test: "TestDevicesThatStopWithinABody/http",
	},
	{
		name: "cross_site", breaks: "another page may ask in the worker's name",
		edit: edit{
			"gateway/proxy/http.go",
			"		rej = crossSite(r, req, app)\n", "		_ = crossSite\n",
		},
		pkg: "./gateway/proxy", test: "TestCrossSite",
	},
	{
		name: "page_unescaped", breaks: "invisible and turning characters reach the page",
		edit: edit{
			"gateway/refusal/refusal.go",
			"unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)", "unicode.In(r, unicode.Cc)",
		},
		pkg: "./gateway/refusal", test: "TestNamesAreText",
	},
	{
		name: "shared_connection", breaks: "an app's connection serves another login",
		edit: edit{
			"gateway/http1/pool.go",
			"!c.asks && c.holder == h {", "!c.asks {",
		},
		pkg: "./gateway/http1", test: "TestNoConnectionForAnother",
	},
	{
		name: "guarded_address_dialled", breaks: "a name may lead to the gateway's own loopback or a metadata service",
		edit: edit{
			"gateway/dial/dial.go",
			"	if within(guarded, a) || within(forbidden, a) {", "	if within(forbidden, a) {",
		},
		pkg: "./gateway/dial", test: "TestDestinations",
	},
	{
		name: "websocket_unbounded", breaks: "a WebSocket message may be of any size",
		edit: edit{
			"gateway/frames/frames.go",
			"		if length > r.limit || r.message > r.limit-length {", "		if length >= 1<<62 {",
		},
		pkg: "./gateway/proxy", test: "TestMessagesAreBounded",
	},
	{
		name: "lane_turn", breaks: "a request that waited for its turn on a connection leaves after a lapse",
		edit: edit{
			"gateway/proxy/upstream.go",
			"connect(ctx, address, u.decided)", "connect(ctx, address, nil)",
		},
		pkg: "./gateway/proxy", test: "TestNoTurnComesBeforeAllIsDecided",
	},
}
