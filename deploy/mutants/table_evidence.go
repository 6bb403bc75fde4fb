package main

// evidence: that what happened can be proven.
var evidence = []mutant{
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
}
