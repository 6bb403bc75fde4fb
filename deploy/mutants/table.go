package main

import "slices"

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
var mutants = slices.Concat(deciding, requests, evidence)

// deciding: who may, for how long, and what is cut.
var deciding = []mutant{
	{
		name: "audit_dropped", breaks: "an allowed flow needs no record",
		edit: edit{
			"gateway/session/flow.go",
			"	return f.m.cfg.Audit.Append(r)\n", "	return nil\n",
		},
		pkg: "./gateway/session", test: "TestUnrecordedIsNotAllowed",
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
