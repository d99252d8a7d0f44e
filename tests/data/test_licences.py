"""Licences: heads as files really have them, fields of records, SPDX expressions, and what a filter then does."""

import pytest

from codegen2_jax.data import licences
from codegen2_jax.data.python_corpus import PERMISSIVE_LICENCES
from codegen2_jax.data.sources import standard_library
from codegen2_jax.errors import UserError

BODY = "\nimport os\n\n\ndef main():\n    return os.getcwd()\n"
GRANT = "Permission is hereby granted, free of charge, to any person obtaining a copy of this thing"
BSD = "Redistribution and use in source and binary forms, with or without changes,"

HEADS = {
    "# SPDX-License-Identifier: MIT": "MIT",
    "// SPDX-License-Identifier: Apache-2.0 OR MIT": "Apache-2.0 OR MIT",
    "/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */": "GPL-2.0-only WITH Linux-syscall-note",
    "<!-- SPDX-License-Identifier: CC0-1.0 -->": "CC0-1.0",
    '__license__ = "x"\n# spdx-license-identifier: BSD-3-Clause': "BSD-3-Clause",
    "# SPDX-License-Identifier: (MIT OR Apache-2.0) AND BSD-2-Clause": "(MIT OR Apache-2.0) AND BSD-2-Clause",
    "# SPDX-License-Identifier: MIT\n# SPDX-License-Identifier: ISC OR 0BSD": "MIT AND (ISC OR 0BSD)",
    "// Copyright 2020 Somebody\n// Licensed under the Apache License,\n//   Version 2.0; see LICENSE": "Apache-2.0",
    f"/*\n * {GRANT[:38]}\n * {GRANT[38:]}\n * The above permission notice shall be included.\n */": "MIT",
    f"# {GRANT}": "MIT-0",
    "# This file is released under the MIT License.": "MIT",
    "-- distributed under the MIT licence": "MIT",
    f"# {BSD}\n# are permitted. Neither the name of X nor of Y may be used.": "BSD-3-Clause",
    f" * {BSD}\n * are permitted provided that": "BSD-2-Clause",
    f"; {BSD} are permitted.\n; All advertising materials must say so.": "BSD-4-Clause",
    "// Use of this source is governed by a BSD-style\n// license that is in the LICENSE file.": "BSD",
    "# the GNU General Public License as published; either version 2, or\n# any later version.": "GPL-2.0-or-later",
    "# the GNU General Public License, version 2": "GPL-2.0-only",
    "/* GNU General Public License v3 */": "GPL-3.0-only",
    "# GNU Lesser General Public License 2.1 or any later version": "LGPL-2.1-or-later",
    "# GNU Affero General Public License or any later version; GNU\n# General Public License": "AGPL-3.0-or-later",
    "// This Source Code is subject to the Mozilla Public License, v. 2.0.": "MPL-2.0",
    "# Permission to use, copy, modify, and/or distribute this software, if\n# this appear in all copies": "ISC",
    "# Permission to use, copy, modify, and/or distribute this software is granted.": "0BSD",
    "# Permission to use, copy, modify, and distribute this software and its documentation": "HPND",
    "/* free and unencumbered software released into\n   the public domain */": "Unlicense",
    "# Licensed to PSF under a Contributor Agreement.": "PSF-2.0",
    "// altered source versions must be plainly marked": "Zlib",
    "// Boost Software License - Version 1.0": "BSL-1.0",
    "# Licensed under either of the Apache License, Version 2.0, or the MIT license": "Apache-2.0 OR MIT",
    "# Parts: Mozilla Public License. Others: MIT License.": "MIT AND MPL-2.0",
    "// PROPRIETARY AND CONFIDENTIAL": licences.PROPRIETARY,
    "# Copyright (c) 2020 Somebody. All rights reserved.": None,
    "# Reads what a licence says; see also the licensing guide.": None,
    "": None,
}  # fmt: skip


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head[:40])
def test_the_head_of_a_file_names_its_licence(head):
    assert licences.of_text(head + BODY) == HEADS[head]
    assert licences.of_text("#!/usr/bin/env thing\n\n" + head + BODY) == HEADS[head]


def test_only_the_head_counts():
    line = "# SPDX-License-Identifier: MIT\n"
    assert licences.of_text("x = 1\n" * 59 + line) == "MIT"
    assert licences.of_text("x = 1\n" * 60 + line) is None
    assert licences.of_text("x" * 8_000 + "\n" + line) is None


def test_the_standard_library_states_nothing_forbidden():
    """Real heads: most say nothing, some are the PSF's, MIT or Apache; a GPL there would be a false alarm."""
    found = {file.path: licences.of_text(file.text) for file in standard_library()}
    stated = {path: licence for path, licence in found.items() if licence}
    forbidden = {path: licence for path, licence in stated.items() if not licences.allows(licence)}
    assert len(stated) >= 10 and "PSF-2.0" in stated.values(), stated
    assert not forbidden


@pytest.mark.parametrize(
    ("field", "licence"),
    [
        ("mit", "MIT"), ("MIT License", "MIT"), ("apache-2.0", "Apache-2.0"), ("Apache Software License", "Apache-2.0"),
        ("Apache License, Version 2.0", "Apache-2.0"), ("bsd-3-clause", "BSD-3-Clause"), ("New BSD", "BSD-3-Clause"),
        ("bsd-2-clause", "BSD-2-Clause"), ("isc", "ISC"), ("gpl-3.0", "gpl-3.0"), ("unlicense", "Unlicense"),
        (["MIT", "Apache-2.0"], "MIT AND Apache-2.0"), (["MIT OR ISC", "GPL-2.0"], "(MIT OR ISC) AND GPL-2.0"),
        ([], None), (None, None), ("", None), ("unknown", None), ("NOASSERTION", None),
    ],
)  # fmt: skip
def test_the_field_of_a_record(field, licence):
    assert licences.of_field(field) == licence


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True), ("mit", True), ("GPL-3.0-only", False), ("MIT OR GPL-3.0-only", True), ("Foo", False),
        ("MIT AND MPL-2.0", False), ("Apache-2.0 WITH LLVM-exception", True), ("GPL-2.0 WITH Classpath", False),
        ("(MIT OR Apache-2.0) AND BSD-3-Clause", True), ("MIT OR (GPL-2.0 AND MPL-2.0)", True),
        ("(MIT AND GPL-2.0) OR EPL-2.0", False), ("GPL-2.0 OR MIT AND EPL-2.0", False), ("((MIT))", True),
        ("(MIT", False), ("MIT)", False), ("MIT AND", False), ("MIT ISC", False), ("", False), ("OR", False),
    ],
)  # fmt: skip
def test_expressions(expression, allowed):
    assert licences.allows(expression) is allowed


def test_the_filter():
    mit, gpl = "# SPDX-License-Identifier: MIT" + BODY, "# SPDX-License-Identifier: GPL-3.0-only" + BODY
    assert licences.fault(mit) == "" and licences.fault(gpl) == "licence not allowed: GPL-3.0-only"
    # The field wins.
    assert licences.fault(gpl, "mit") == "" and licences.fault(mit, ["GPL-2.0"]) == "licence not allowed: GPL-2.0"
    assert licences.fault(gpl, "unknown") == "licence not allowed: GPL-3.0-only"  # and says nothing here
    assert licences.fault(BODY) == "" and licences.fault(BODY, keep_unknown=False) == "licence unknown"
    assert licences.fault(gpl, allowed=None) == "" == licences.fault(BODY, allowed=None, keep_unknown=False)
    assert licences.fault(gpl, allowed={"GPL-3.0-only"}) == "" != licences.fault(mit, allowed={"GPL-3.0-only"})


def test_lists_of_allowed_licences():
    assert licences.allow_list(None) is None
    assert licences.allow_list("permissive") == PERMISSIVE_LICENCES
    assert licences.allow_list(["MIT"]) == {"MIT"}
    for wrong in ("MIT", []):
        with pytest.raises(UserError, match="licences="):
            licences.allow_list(wrong)
