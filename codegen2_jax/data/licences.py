"""Under which licence a document stands, by its own head, and whether that is one that a corpus may hold.

The record's own licence field wins; else an SPDX line in the head; else the phrases by which well-known licences and
notices are told. What is found is an SPDX expression. A head can lie and most files have none: the result is a filter
for a corpus, not legal advice.
"""

import re
from collections.abc import Collection, Sequence

from codegen2_jax.data.python_corpus import PERMISSIVE_LICENCES
from codegen2_jax.errors import UserError

PERMISSIVE = "permissive"
"""In place of a list of licences: those of python_corpus.PERMISSIVE_LICENCES."""

HEAD_LINES = 60
HEAD_CHARACTERS = 8_000
PROPRIETARY = "LicenseRef-proprietary"

_SPDX_LINE = re.compile(r"SPDX-License-Identifier[ \t]*:[ \t]*[\"']?([A-Za-z0-9(][\w.+() /-]*)", re.IGNORECASE)
_COMMENT_SIGNS = re.compile(r"^[\s#/*;%!<>|.-]+|[\s*/#|>-]+$", re.MULTILINE)

# What a licence's text or its usual notice says, in lower case with single spaces; all phrases of a row must occur.
# Ordered: of the rows of one family (the last column) the first that fits is taken.
_PHRASES = (
    ("AGPL-3.0-or-later", ("gnu affero general public license", "any later version"), "agpl"),
    ("AGPL-3.0-only", ("gnu affero general public license",), "agpl"),
    ("LGPL-2.0-or-later", ("gnu library general public license",), "lgpl"),
    ("LGPL-2.1-or-later", ("gnu lesser general public license", "any later version", "2.1"), "lgpl"),
    ("LGPL-3.0-or-later", ("gnu lesser general public license", "any later version"), "lgpl"),
    ("LGPL-2.1-only", ("gnu lesser general public license",), "lgpl"),
    ("GPL-2.0-or-later", ("gnu general public license", "any later version", "version 2"), "gpl"),
    ("GPL-3.0-or-later", ("gnu general public license", "any later version"), "gpl"),
    ("GPL-2.0-only", ("gnu general public license", "version 2"), "gpl"),
    ("GPL-3.0-only", ("gnu general public license",), "gpl"),
    ("MPL-2.0", ("mozilla public license",), "mpl"),
    ("EPL-2.0", ("eclipse public license",), "epl"),
    ("CDDL-1.0", ("common development and distribution license",), "cddl"),
    ("CC-BY-NC-4.0", ("creative commons attribution-noncommercial",), "cc"),
    ("CC-BY-SA-4.0", ("creative commons attribution-sharealike",), "cc"),
    ("CC-BY-4.0", ("creative commons attribution",), "cc"),
    ("CC0-1.0", ("cc0 1.0",), "cc"),
    ("CC0-1.0", ("creative commons zero",), "cc"),
    ("Apache-2.0", ("apache license", "2.0"), "apache"),
    ("BSL-1.0", ("boost software license",), "boost"),
    ("Unlicense", ("free and unencumbered software released into the public domain",), "unlicense"),
    ("MIT", ("permission is hereby granted, free of charge", "permission notice shall be included"), "mit"),
    ("MIT-0", ("permission is hereby granted, free of charge",), "mit"),
    ("MIT", ("mit license",), "mit"),
    ("MIT", ("under the mit",), "mit"),
    ("BSD-4-Clause", ("redistribution and use in source and binary forms", "all advertising materials"), "bsd"),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "neither the name"), "bsd"),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms",), "bsd"),
    ("BSD-3-Clause", ("bsd 3-clause",), "bsd"),
    ("BSD-2-Clause", ("bsd 2-clause",), "bsd"),
    ("BSD", ("bsd-style license",), "bsd"),
    ("BSD", ("bsd license",), "bsd"),
    ("ISC", ("permission to use, copy, modify, and/or distribute this software", "appear in all copies"), "isc"),
    ("ISC", ("permission to use, copy, modify, and distribute this software for any", "appear in all copies"), "isc"),
    ("0BSD", ("permission to use, copy, modify, and/or distribute this software",), "isc"),
    ("HPND", ("permission to use, copy, modify, and distribute this software and its documentation",), "hpnd"),
    ("Zlib", ("altered source versions must be plainly marked",), "zlib"),
    ("PSF-2.0", ("licensed to psf under a contributor agreement",), "psf"),
    ("PSF-2.0", ("python software foundation license",), "psf"),
    (PROPRIETARY, ("proprietary and confidential",), "own"),
    (PROPRIETARY, ("confidential and proprietary",), "own"),
    (PROPRIETARY, ("unauthorized copying",), "own"),
)  # fmt: skip
_EITHER = re.compile(r"\b(dual[- ]licensed|under either|either of)\b")
# Free text of a record's licence field, where it is no SPDX identifier.
_FIELD_NAMES = (
    (r"^apache[\s-]*(software\s*)?(license,?\s*)?(version\s*)?v?2(\.0)?$|^apache software license$", "Apache-2.0"),
    (r"^(the\s+)?mit(\s+license)?$|^expat$", "MIT"),
    (r"^(new|modified|revised)\s+bsd|^bsd[\s-]*3|^3[\s-]*clause bsd|bsd.3.clause", "BSD-3-Clause"),
    (r"^simplified bsd|^bsd[\s-]*2|^2[\s-]*clause bsd", "BSD-2-Clause"),
    (r"^bsd(\s+license)?$", "BSD"),
    (r"^(the\s+)?unlicense$", "Unlicense"),
    (r"^(python software foundation|psf)", "PSF-2.0"),
    (r"^isc(\s+license)?( \(iscl\))?$", "ISC"),
    (r"^cc0", "CC0-1.0"),
)


def of_text(text: str) -> str | None:
    """The SPDX expression that the head of a document states, or None where it states nothing that is known.

    The first 60 lines count, 8,000 characters at most. Notices of several licences are joined by AND; by OR where the
    head says that one may choose. A notice of the GPL without its version is read as the latest without later ones.
    """
    head = "\n".join(text[:HEAD_CHARACTERS].splitlines()[:HEAD_LINES])
    stated = [_trimmed(found) for found in _SPDX_LINE.findall(head)]
    stated = list(dict.fromkeys(one for one in stated if one))
    if stated:
        return stated[0] if len(stated) == 1 else " AND ".join(f"({one})" if " OR " in one else one for one in stated)
    plain = re.sub(r"\s+", " ", _COMMENT_SIGNS.sub(" ", head)).lower().replace("licence", "license")
    found: dict[str, str] = {}
    for licence, phrases, family in _PHRASES:
        if family not in found and all(phrase in plain for phrase in phrases):
            found[family] = licence
    # The notice of one member of the GPL family names the plain one too.
    if {"agpl", "lgpl"} & found.keys():
        found.pop("gpl", None)
    if len(found) > 1:
        found.pop("own", None)
    return (" OR " if _EITHER.search(plain) else " AND ").join(sorted(set(found.values()))) or None


def _trimmed(expression: str) -> str:
    """An SPDX line's expression without what ends the comment around it."""
    return re.sub(r"\s*(\*/|-->|[-/*]+)\s*$", "", expression.strip()).strip()


def of_field(value: str | Sequence[str] | None) -> str | None:
    """The SPDX expression in a record's licence field: an identifier in any case, a usual name, or a list (AND).

    None for an empty field and for words such as "unknown" or "other".
    """
    if value is None or isinstance(value, str):
        name = (value or "").strip()
        if name.lower() in ("", "unknown", "none", "null", "no license", "no_license", "other", "noassertion"):
            return None
        known = next((known for pattern, known in _FIELD_NAMES if re.search(pattern, name, re.IGNORECASE)), None)
        return known or name
    parts = [of_field(one) for one in value]
    return " AND ".join(f"({part})" if " OR " in part else part for part in parts if part) or None


def allows(expression: str, allowed: Collection[str] = PERMISSIVE_LICENCES) -> bool:
    """Whether an SPDX expression can be met with the allowed licences alone: one side of an OR, all sides of an AND.

    Identifiers are compared without case; "WITH exception" only adds permissions and is passed over. What is no
    expression is not allowed.
    """
    tokens = re.findall(r"[()]|[^\s()]+", expression)
    known = {one.lower() for one in allowed}
    try:
        value, end = _either(tokens, 0, known)
    except IndexError:
        return False
    return value and end == len(tokens)


def _either(tokens: Sequence[str], at: int, known: Collection[str]) -> tuple[bool, int]:
    value, at = _both(tokens, at, known)
    while at < len(tokens) and tokens[at].upper() == "OR":
        other, at = _both(tokens, at + 1, known)
        value = value or other
    return value, at


def _both(tokens: Sequence[str], at: int, known: Collection[str]) -> tuple[bool, int]:
    value, at = _one(tokens, at, known)
    while at < len(tokens) and tokens[at].upper() == "AND":
        other, at = _one(tokens, at + 1, known)
        value = value and other
    return value, at


def _one(tokens: Sequence[str], at: int, known: Collection[str]) -> tuple[bool, int]:
    if tokens[at] == "(":
        value, at = _either(tokens, at + 1, known)
        return value and tokens[at] == ")", at + 1
    value, at = tokens[at].lower() in known, at + 1
    if at < len(tokens) and tokens[at].upper() == "WITH":
        at += 2
    return value, at


def allow_list(given: str | Collection[str] | None) -> frozenset[str] | None:
    """The allowed licences: None for no filter, "permissive" for the built-in list, else the identifiers given."""
    if given is None:
        return None
    if isinstance(given, str):
        if given != PERMISSIVE:
            raise UserError(f"licences={given!r} is neither {PERMISSIVE!r} nor a list of SPDX identifiers; give one.")
        return PERMISSIVE_LICENCES
    if not given:
        raise UserError("licences=[] allows nothing; name SPDX identifiers, or give None for no filter.")
    return frozenset(given)


def fault(
    text: str,
    field: str | Sequence[str] | None = None,
    *,
    allowed: Collection[str] | None = PERMISSIVE_LICENCES,
    keep_unknown: bool = True,
) -> str:
    """Why a document may not be used, for example "licence not allowed: GPL-3.0-only"; "" when it may.

    field is the record's own licence and wins. Without any sign of a licence keep_unknown decides. allowed=None allows
    everything.
    """
    if allowed is None:
        return ""
    licence = of_field(field) or of_text(text)
    if licence is None:
        return "" if keep_unknown else "licence unknown"
    return "" if allows(licence, allowed) else f"licence not allowed: {licence}"
