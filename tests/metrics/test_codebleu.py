"""CodeBLEU: hand-made cases for each part, and the PyPI package's numbers on pairs made from real code."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

from codegen2_jax.errors import UserError
from codegen2_jax.metrics import code_trees
from codegen2_jax.metrics.bleu import codet5_bleu
from codegen2_jax.metrics.code_trees import LANGUAGES, available, parse, subtrees, without_comments
from codegen2_jax.metrics.codebleu import codebleu, codebleu_c_sharp, codebleu_java
from codegen2_jax.metrics.data_flow import COMES_FROM, COMPUTED_FROM, data_flow

GOLDEN = Path(__file__).parent.parent / "golden" / "codebleu.json"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "codetask_cl"
MINIMUM = "int function ( int a , int b ) { int c = a ; if ( b < c ) { c = b ; } return c ; }"
SCORERS = {"java": codebleu_java, "c_sharp": codebleu_c_sharp}

needs_trees = pytest.mark.skipif(not all(map(available, LANGUAGES)), reason="tree-sitter is not installed")
each_language = pytest.mark.parametrize("language", sorted(LANGUAGES))


@needs_trees
@each_language
def test_one_line_of_code_against_itself(language):
    parts = codebleu([MINIMUM], [MINIMUM], language)
    assert (parts.ngram, parts.weighted_ngram, parts.syntax, parts.data_flow) == pytest.approx((100.0,) * 4)
    assert SCORERS[language]([MINIMUM], [MINIMUM]) == pytest.approx(100.0)


@needs_trees
@each_language
@pytest.mark.parametrize("hypothesis", ["", " \n ", "// nothing", "){", "gets the user 's name", "é\x0b\udc80"])
def test_a_hypothesis_that_is_no_code_scores_low(language, hypothesis):
    parts = codebleu([hypothesis], [MINIMUM], language)
    assert (parts.ngram, parts.data_flow) == (0.0, 0.0)
    assert 0.0 <= parts.total < 15.0


@needs_trees
def test_empty_against_empty():
    # No word can match, and nothing can be missed.
    parts = codebleu([""], [""], "java")
    assert (parts.ngram, parts.weighted_ngram, parts.syntax, parts.data_flow) == (0.0, 0.0, 100.0, 100.0)


@needs_trees
def test_bleu_is_not_codet5_bleu():
    """Four of five words: m = 4, 3, 2, 1 of c = 4, 3, 2, 1, and the brevity penalty of 4 against 5."""
    hypothesis, reference = "a = b ;", "a = b ; }"
    assert codebleu([hypothesis], [reference], "java").ngram == pytest.approx(100 * math.exp(1 - 5 / 4))
    # No common 3-gram and 4-gram: 0.1 in their place.
    hypothesis, reference = "a = b ;", "a = c ; b"
    ngram = codebleu([hypothesis], [reference], "java").ngram
    assert ngram == pytest.approx(100 * math.exp(1 - 5 / 4) * (4 / 4 * 1 / 3 * 0.1 / 2 * 0.1 / 1) ** 0.25)
    assert ngram != pytest.approx(codet5_bleu([hypothesis], [reference]))


@needs_trees
def test_a_missed_keyword_costs_five_times_a_missed_name():
    """Words of the reference: return and this weigh 1, the other three 0.2; 4, 3 and 2 longer n-grams."""
    reference = "return this . x ;"
    no_keyword = codebleu(["give this . x ;"], [reference], "java").weighted_ngram
    no_name = codebleu(["return this . y ;"], [reference], "java").weighted_ngram
    assert no_keyword == pytest.approx(100 * (1.6 / 2.6 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert no_name == pytest.approx(100 * (2.4 / 2.6 * 2 / 4 * 1 / 3 * 0.1 / 2) ** 0.25)
    # The same words mean something else to C#, where `string` is one of its own.
    assert "string" in LANGUAGES["c_sharp"].keywords - LANGUAGES["java"].keywords
    assert "synchronized" in LANGUAGES["java"].keywords - LANGUAGES["c_sharp"].keywords


@needs_trees
@each_language
def test_syntax_knows_no_names_and_counts_the_references_subtrees(language):
    renamed = MINIMUM.replace(" a ", " left ").replace(" b ", " right ").replace(" 1 ", " 2 ")
    assert codebleu([renamed], [MINIMUM], language).syntax == pytest.approx(100.0)
    shorter = MINIMUM.replace("return c ;", "")
    # Lost: the return statement, and all that is above it.
    wanted = len(subtrees(parse(MINIMUM, language)))
    above = 3 if language == "java" else 4
    assert codebleu([shorter], [MINIMUM], language).syntax == pytest.approx(100 * (1 - (above + 1) / wanted))
    # The other way round the additional statement costs only what contains it.
    wanted = len(subtrees(parse(shorter, language)))
    assert codebleu([MINIMUM], [shorter], language).syntax == pytest.approx(100 * (1 - above / wanted))


@needs_trees
def test_java_data_flow_by_hand():
    items = data_flow(parse("int f ( int a , int b ) { int c = a ; c = a + b ; return c ; }", "java"), "java")
    assert sorted(items.elements()) == [
        (0, COMES_FROM, ()),  # the parameter a
        (0, COMES_FROM, (0,)),  # its use as c's first value
        (0, COMES_FROM, (0,)),  # and in the sum
        (1, COMES_FROM, ()),  # the parameter b
        (1, COMES_FROM, (1,)),
        (2, COMES_FROM, (0,)),  # int c = a
        (2, COMES_FROM, (2,)),  # return c
        (2, COMPUTED_FROM, (0, 1)),  # c = a + b
    ]


@needs_trees
@each_language
def test_data_flow_does_not_change_with_the_names(language):
    code = "int f ( int a , int b ) { int c = 0 ; while ( a < b ) { c = a + b * c ; a ++ ; } return c ; }"
    renamed = code.replace(" a ", " zz ").replace(" b ", " Value ").replace(" c ", " k9 ")
    items = data_flow(parse(code, language), language)
    assert items == data_flow(parse(renamed, language), language)
    assert items.total() > 8
    swapped = code.replace("c = a + b * c", "c = a + a * b")
    assert codebleu([swapped], [code], language).data_flow < 100.0


@needs_trees
@each_language
def test_a_loop_reads_the_value_of_the_round_before(language):
    """`c` inside the loop comes from before it and from its own end: the assignment's place is a source."""
    once = data_flow(parse("void f ( ) { if ( d ) { b = c ; c = d ; } }", language), language)
    again = data_flow(parse("void f ( ) { while ( d ) { b = c ; c = d ; } }", language), language)
    assert (once - again).total() and (again - once).total()


@needs_trees
@each_language
def test_branches_start_from_the_same_states(language):
    code = "void f ( int a ) { int b ; if ( a ) { b = 1 ; } else { b = 2 ; } g ( b ) ; }"
    one_branch = code.replace("else { b = 2 ; }", "")
    assert data_flow(parse(code, language), language) != data_flow(parse(one_branch, language), language)


@needs_trees
def test_what_only_java_reads():
    """The rules for C# know an older grammar: a declaration's value and for-each; the package has the same gaps."""
    declared = "void f ( int a ) { int c = a ; }"
    assert (1, COMES_FROM, (0,)) in data_flow(parse(declared, "java"), "java")
    assert not data_flow(parse(declared, "c_sharp"), "c_sharp")
    java = data_flow(parse("void f ( ) { for ( int c : d ) { g ( c ) ; } }", "java"), "java")
    assert (1, COMPUTED_FROM, (0,)) in java
    c_sharp = data_flow(parse("void f ( ) { foreach ( int c in d ) { g ( c ) ; } }", "c_sharp"), "c_sharp")
    assert c_sharp == {(0, COMES_FROM, ()): 1, (0, COMES_FROM, (0,)): 1}


@needs_trees
def test_nothing_to_flow_cannot_be_missed():
    empty = "void f ( ) { }"
    assert codebleu([MINIMUM], [empty], "java").data_flow == 100.0
    assert codebleu([empty], [MINIMUM], "java").data_flow == 0.0


@needs_trees
def test_code_nested_too_deep_has_no_data_flow():
    deep = "int f ( int a ) { return " + "-" * 5000 + " a ; }"
    assert codebleu([MINIMUM, deep], [MINIMUM, MINIMUM], "java").data_flow == pytest.approx(50.0)


@needs_trees
def test_letters_beyond_ascii_are_one_token():
    code = 'String f ( int größe ) { String é = "ü" + größe ; return é ; }'
    plain = code.replace("größe", "size").replace("é", "e").replace("ü", "u")
    assert data_flow(parse(code, "java"), "java") == data_flow(parse(plain, "java"), "java")


def test_comments():
    assert without_comments(" a = 1 ; // it's\n\n /* b\n */ c = '\"' ; ") == "a = 1 ;  \n   c = '\"' ;"
    literals = 's = "http://x" + \'\\\'\' + "/* \\" */" ;'
    assert without_comments(literals) == literals


@needs_trees
@each_language
def test_comments_and_line_ends_do_not_change_trees(language):
    commented = MINIMUM.replace("; ", '; // it\'s "c"\n').replace("{", "{ /* } */\n\n")
    parts = codebleu([commented], [MINIMUM], language)
    assert (parts.syntax, parts.data_flow) == pytest.approx((100.0, 100.0))


@pytest.mark.parametrize("missing", ["tree_sitter", "tree_sitter_java"])
def test_without_tree_sitter_nothing_is_computed(monkeypatch, missing):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == missing else find_spec(name))
    assert not available("java")
    assert codebleu([MINIMUM], [MINIMUM], "java") is None
    assert codebleu_java([MINIMUM], [MINIMUM]) is None
    # Mistakes are still told.
    with pytest.raises(UserError, match="0 examples to score"):
        codebleu_java([], [])


@needs_trees
def test_the_runner_has_a_column_for_it(monkeypatch):
    from codegen2_jax.evaluation.runner import score

    assert score([MINIMUM], [MINIMUM], ["codebleu_c_sharp"]) == {"codebleu": pytest.approx(100.0)}
    monkeypatch.setattr("codegen2_jax.metrics.codebleu.available", lambda language: False)
    assert score([MINIMUM], [MINIMUM], ["exact_match", "codebleu_java"]) == {"exact_match": 100.0, "codebleu": None}


def test_errors_are_one_line():
    with pytest.raises(UserError, match=r"^language 'cobol' is unknown to CodeBLEU; the known ones are .*$"):
        codebleu(["a"], ["a"], "cobol")
    with pytest.raises(UserError, match="1 hypotheses for 2 references"):
        codebleu_c_sharp(["a"], ["a", "b"])


@needs_trees
def test_a_grammar_that_tree_sitter_cannot_use_is_named(monkeypatch):
    import tree_sitter

    def refuse(grammar):
        raise ValueError("Incompatible Language version 15. Must be between 13 and 14")

    monkeypatch.setattr(tree_sitter, "Language", refuse)
    code_trees._parser.cache_clear()
    with pytest.raises(
        UserError, match=r"cannot use the grammar tree_sitter_java \(Incompatible .*codegen2_jax\[eval\]"
    ):
        codebleu_java([MINIMUM], [MINIMUM])


def made_pairs(language):
    """(key, hypothesis, reference), as the script that wrote the golden file makes them."""
    spec = importlib.util.spec_from_file_location("make_codebleu", GOLDEN.with_name("make_codebleu.py"))
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return list(script.pairs(SHARED, language))


@needs_trees
@each_language
@pytest.mark.skipif(not SHARED.is_dir(), reason="the CodeTask-CL files are not beside this checkout")
def test_the_packages_numbers(language):
    """Every part of every pair, but for the two cases of no match that the module's docstring names."""
    golden, pairs = json.loads(GOLDEN.read_text())[language], made_pairs(language)
    assert len(pairs) == len(golden["pairs"]) >= 299
    for key, hypothesis, reference in pairs:
        total, ngram, weighted_ngram, syntax, flow = (100 * value for value in golden["pairs"][key])
        parts = codebleu([hypothesis], [reference], language)
        if flow == 0 and parts.data_flow == 0:
            total -= 25
        elif flow == 0:
            assert not data_flow(parse(reference, language), language), key
            flow = 100.0
        expected = (total, ngram, weighted_ngram, syntax, flow)
        found = (parts.total, parts.ngram, parts.weighted_ngram, parts.syntax, parts.data_flow)
        assert found == pytest.approx(expected, abs=1e-8), key  # of 100: the file's 10 decimals are of 1
    parts = codebleu([pair[1] for pair in pairs], [pair[2] for pair in pairs], language)
    found = (parts.total, parts.ngram, parts.weighted_ngram, parts.syntax, parts.data_flow)
    assert found == pytest.approx([100 * value for value in golden["corpus"]], abs=1e-8)
    assert "codebleu" not in sys.modules
