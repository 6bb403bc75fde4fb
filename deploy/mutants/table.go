package main

// mutant is one promise, broken on purpose.
type mutant struct {
	name string
	// breaks says what no longer holds.
	breaks string
	edit
	// The test that must fail.
	pkg, test string
	also      []edit // where a promise is kept in more than one place
}

// edit replaces what stands exactly once in a file of the product.
type edit struct{ file, old, new string }

// mutants are the builds that must not pass. Whoever moves a line that is named
// here moves it here too: what cannot be found is an error.
var mutants = []mutant{
	{
		name: "audit_dropped", breaks: "an allowed flow needs no record",
		edit: edit{
			"gateway/session/flow.go",
			"	return f.m.cfg.Audit.Append(r)\n", "	return nil\n",
		},
		pkg: "./gateway/session", test: "TestUnrecordedIsNotAllowed",
	},
	{
		name: "strict_not_synced", breaks: "a strict record need not be on the disk",
		edit: edit{
			"gateway/audit/append.go",
			"	return l.syncTo(r.Seq)\n", "	return nil\n",
		},
		pkg: "./gateway/audit", test: "TestDurableRecordsShareASync",
	},
	{
		name: "flood_uncounted", breaks: "refusals beyond the rate are in no record",
		edit: edit{
			"gateway/audit/refusals.go",
			"	r.fold(&rec)\n", "	_ = r.fold\n",
		},
		pkg: "./gateway/audit", test: "TestFloodsAddUp",
	},
	{
		name: "end_lost", breaks: "the end of a flow may find no room in the queue",
		edit: edit{
			"gateway/audit/queue.go",
			"	if !l.note(&r, 0) {", "	if !l.note(&r, maxNotes) {",
		},
		pkg: "./gateway/audit", test: "TestEndsAreNeverLost",
	},
	{
		name: "personal_in_the_open", breaks: "personal data is written as it is",
		edit: edit{
			"gateway/audit/seal.go",
			"	if keys == nil {\n", "	if keys != nil || keys == nil {\n",
		},
		pkg: "./gateway/audit", test: "TestPersonalDataIsSealedAndRevealed",
	},
	{
		name: "erasure_keeps_the_key", breaks: "what was erased can be opened after a restart",
		edit: edit{
			"gateway/audit/people/expire.go",
			"		if err := k.destroy(p.id); err != nil {\n			return err\n		}\n		k.mu.Lock()\n		k.remove(p)", "		k.mu.Lock()\n		k.remove(p)",
		},
		pkg: "./gateway/audit/people", test: "TestErase",
	},
	{
		name: "expired_field_kept", breaks: "a field that expired can be opened after a restart",
		edit: edit{
			"gateway/audit/people/expire.go",
			"	if err := k.destroy(f.file(date)); err != nil {\n		return err\n	}\n", "",
		},
		pkg: "./gateway/audit/people", test: "TestFieldsExpireAlone",
	},
	{
		name: "leap_believed", breaks: "a clock that leaps ahead destroys what is not old",
		edit: edit{
			"gateway/audit/clock.go",
			"	case leap.Abs() <= c.most:", "	case leap.Abs() <= 1<<62:",
		},
		pkg: "./gateway/audit", test: "TestClockThatLeapsDestroysNothing",
	},
	{
		name: "removal_untold", breaks: "a log whose beginning somebody removed verifies",
		edit: edit{
			"gateway/audit/notary/verify.go",
			"	if told < removed {", "	if told < 0 {",
		},
		pkg: "./gateway/audit/notary", test: "TestRemovalIsNoWayAroundTheSignature",
	},
	{
		name: "record_unescaped", breaks: "text of others may move a cursor in the log",
		edit: edit{
			"gateway/audit/encode.go",
			"	return r >= 0x7F && unicode.In(", "	return false && unicode.In(",
		},
		pkg: "./gateway/audit", test: "TestNamesStayInTheirLine",
	},
	{
		name: "changed_log_verifies", breaks: "a record may be another than was signed",
		edit: edit{
			"gateway/audit/notary/verify.go",
			"			if h != was {", "			if h != was && was == h {",
		},
		pkg: "./gateway/audit/notary", test: "TestVerifyNamesTheFirstBadRecord",
	},
	{
		name: "number_is_enough", breaks: "another record with the signed number ends the alarm",
		edit: edit{
			"gateway/audit/notary/resume.go",
			"		if tlog.RecordHash(line) != was {", "		if tlog.RecordHash(line) != was && line == nil {",
		},
		pkg: "./gateway/audit/notary", test: "TestTheAlarmStaysWhenTheLogGrowsOn",
	},
	{
		name: "checkpoint_forgotten", breaks: "without its checkpoint a log is signed as a new one",
		edit: edit{
			"gateway/audit/notary/resume.go",
			"	if mark.Size > 0 {\n", "	if mark.Size < 0 {\n",
		},
		pkg: "./gateway/audit/notary", test: "TestAMissingCheckpointIsNoNewBeginning",
	},
	{
		name: "removed_unseen", breaks: "retention removes what somebody made old",
		edit: edit{
			"gateway/audit/notary/notary.go",
			"	err := n.compare(int64(first), int64(last))\n", "	err := n.compare(int64(first), int64(first)-1)\n",
		},
		pkg: "./gateway/audit/notary", test: "TestOnlyWhatWasSignedMayBeRemoved",
	},
	{
		name: "tile_written_again", breaks: "who is killed while it signs needs a backup of the tree",
		edit: edit{
			"gateway/audit/notary/tiles.go",
			"	if err == nil && bytes.Equal(was, data) && ", "	if err == nil && was == nil && bytes.Equal(was, data) && ",
		},
		pkg: "./gateway/audit/notary", test: "TestKilledBetweenAnyTwoWrites",
	},
	{
		name: "closed_file_extended", breaks: "something may be written behind a closed file's last record",
		edit: edit{
			"gateway/audit/notary/verify.go",
			"	if unended != \"\" {", "	if unended != \"\" && rep.Records < 0 {",
		},
		pkg: "./gateway/audit/notary", test: "TestNothingIsAddedToAClosedFile",
	},
	{
		name: "another_history", breaks: "a history that a copy of the gateway signed may take the place of this one's",
		edit: edit{
			"gateway/audit/notary/resume.go",
			"mark.Size > 0 && root != mark.Root)", "mark.Size < 0 && root != mark.Root)",
		},
		pkg: "./gateway/audit/notary", test: "TestAnotherHistoryOfTheSameKey",
	},
	{
		name: "removed_unchecked", breaks: "a kept checkpoint over removed records is not compared",
		edit: edit{
			"gateway/audit/notary/verify.go",
			"size < removed && (err != nil || was != root)", "size < 0 && (err != nil || was != root)",
		},
		pkg: "./gateway/audit/notary", test: "TestACheckpointOverRemovedRecordsCounts",
	},
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
		name: "lease_not_checked", breaks: "a paused gateway lets bytes through afterwards",
		edit: edit{
			"gateway/session/flow.go",
			"	if int64(f.m.cfg.Elapsed()) <= f.leaseEnd.Load() {", "	if f.leaseEnd.Load() >= 0 {",
		},
		pkg: "./gateway/session", test: "TestLapsedLeaseIsDecidedAgain",
	},
	{
		name: "epoch_not_compared", breaks: "a change while a flow is decided is missed",
		edit: edit{
			"gateway/session/flow.go",
			"		if f.d.epoch.Load() == epoch {", "		if f.d.epoch.Load() >= epoch {",
		},
		pkg: "./gateway/session", test: "TestChangeBetweenDecisionAndOpening",
	},
	{
		name: "cut_without_reset", breaks: "a flow that is cut keeps its connections",
		edit: edit{
			"gateway/session/flow.go",
			"		f.finish()\n		if fn != nil {\n			fn()", "		f.finish()\n		if fn != nil && dec.Allow {\n			fn()",
		},
		pkg: "./gateway/session", test: "TestChangeCuts",
	},
	{
		name: "flow_inherited", breaks: "whoever logs in next gets the other's open flows",
		edit: edit{
			"gateway/session/confirm.go",
			"	case dec.Allow && !samePerson(owner, on.facts):", "	case dec.Allow && on == nil && !samePerson(owner, on.facts):",
		},
		pkg: "./gateway/session", test: "TestAnotherPersonInheritsNoFlow",
	},
	{
		name: "drain_hides_hard", breaks: "a call that is being finished outlives the firewall",
		edit: edit{
			"gateway/session/drain.go",
			"; !dec2.Allow {", "; !dec2.Allow && dec2.Reason == dec.Reason {",
		},
		pkg: "./gateway/session", test: "TestHardCausesCutWhatDrains",
	},
	{
		name: "drain_renewed", breaks: "a permission that comes and goes lets a call be finished for ever",
		edit: edit{
			"gateway/session/drain.go",
			"used: was.used + max(0, f.m.cfg.Elapsed()-was.since)", "used: was.used",
		},
		pkg: "./gateway/session", test: "TestDrainIsNeverLonger",
	},
	{
		name: "drain_unrecorded", breaks: "what is finished without permission is not in the log",
		edit: edit{
			"gateway/session/drain.go",
			"	case ok && err != nil:", "	case ok && err != nil && f.ended:",
		},
		pkg: "./gateway/session", test: "TestNoDrainWithoutARecord",
	},
	{
		name: "lapse_unseen", breaks: "what was queued when the gateway stood still leaves when it goes on",
		edit: edit{
			"gateway/session/lapse.go",
			"m.beat.Load()) <= m.lapse()", "m.beat.Load()) <= 1000*m.lapse()",
		},
		pkg: "./gateway/session", test: "TestNothingIsAwakeBeforeItIsDecidedAgain",
	},
	{
		name: "lapse_undecided", breaks: "after a lapse all counts as decided again before it is",
		edit: edit{
			"gateway/session/lapse.go",
			"m.decided.Load()) <= m.lapse()", "m.decided.Load()) <= 1000*m.lapse()",
		},
		pkg: "./gateway/session", test: "TestNothingIsAwakeBeforeItIsDecidedAgain",
	},
	{
		name: "lane_turn", breaks: "a request that waited for its turn on a connection leaves after a lapse",
		edit: edit{
			"gateway/proxy/upstream.go",
			"connect(ctx, address, u.decided)", "connect(ctx, address, nil)",
		},
		pkg: "./gateway/proxy", test: "TestNoTurnComesBeforeAllIsDecided",
	},
	{
		name: "lapse_leaves", breaks: "the socket sends although the gateway is not awake",
		edit: edit{
			"gateway/tunnel/ingress.go",
			"awake != nil && !awake()", "awake != nil && !awake() && len(bufs) > 9",
		},
		pkg: "./gateway/tunnel", test: "TestNothingLeavesAfterALapse",
	},
	{
		name: "shared_too_far", breaks: "one person's answer is given to another",
		edit: edit{
			"policy/shared.go",
			"	if s.subjects {", "	if s.subjects && k.port == 1 {",
		},
		pkg: "./policy", test: "TestSharedIsNobodyElses",
	},
	{
		name: "audience_ignored", breaks: "an ID token for another client logs in here",
		edit: edit{
			"gateway/identity/token.go",
			"	if !slices.Contains(aud, p.cfg.ClientID) {", "	if !slices.Contains(append(aud, p.cfg.ClientID), p.cfg.ClientID) {",
		},
		pkg: "./gateway/identity", test: "TestBadTokens",
		also: []edit{{
			"gateway/identity/discovery.go",
			"		ClientID: p.cfg.ClientID, SupportedSigningAlgs", "		SkipClientIDCheck: true, SupportedSigningAlgs",
		}},
	},
	{
		name: "nonce_ignored", breaks: "an ID token of another login logs in",
		edit: edit{
			"gateway/identity/token.go",
			"	if !sameText(c.text(\"nonce\"), nonce) {", "	if !sameText(nonce, nonce) {",
		},
		pkg: "./gateway/identity", test: "TestBadTokens",
	},
	{
		name: "state_reused", breaks: "the state of a login counts twice",
		edit: edit{
			"gateway/identity/pending.go",
			"	t.remove(k)\n	if !now.Before(l.expires) {", "	if !now.Before(l.expires) {",
		},
		pkg: "./gateway/identity", test: "TestState",
	},
	{
		name: "code_used_twice", breaks: "an enrolment code enrols two devices",
		edit: edit{
			"gateway/store/device.go",
			"	case used.Valid:", "	case used.Valid && used.Int64 == 0:",
		},
		pkg: "./gateway/store", test: "TestRedeem",
	},
	{
		name: "revoked_accepted", breaks: "a revoked device connects",
		edit: edit{
			"gateway/control/public.go",
			"	case d.Revoked():", "	case d.Revoked() && d.ID == \"\":",
		},
		pkg: "./gateway/control", test: "TestRevokedDeviceIsToldWhy",
	},
	{
		name: "four_eyes_skipped", breaks: "who asks for the end of a lockdown approves it too",
		edit: edit{
			"gateway/admin/approvals.go",
			"	if uidOf(a.RequestedBy) == uidOf(actor(r)) {", "	if uidOf(a.RequestedBy) == \"\" {",
		},
		pkg: "./gateway/admin", test: "TestTwoAdministrators",
	},
	{
		name: "unknown_posture_passes", breaks: "a signal that is not known counts as sound",
		edit: edit{
			"policy/rego/access.rego",
			"		input.posture.signals[name].state == \"pass\"\n", "		input.posture.signals[name].state != \"fail\"\n",
		},
		pkg: "./policy", test: "TestDecide",
	},
	{
		name: "mac1_not_checked", breaks: "who does not know the gateway's key gets it to work",
		edit: edit{
			"gateway/tunnel/gate.go",
			"	if !g.checker.CheckMAC1(d[:]) {", "	if len(d) == 0 {",
		},
		pkg: "./gateway/tunnel", test: "TestJunkIsSilent",
	},
	{
		name: "segment_open", breaks: "a device reaches what its segment does not hold",
		edit: edit{
			"gateway/segment/table.go",
			"	case !allowed:", "	case !allowed && port == 0:",
		},
		pkg: "./gateway/segment", test: "TestFilter",
	},
	{
		name: "unknown_source_passes", breaks: "an address of no registered device passes",
		edit: edit{
			"gateway/segment/table.go",
			"		return Drop, CauseSource\n", "		return Pass, CauseNone\n",
		},
		pkg: "./gateway/segment", test: "TestFilter",
	},
}
