"""Grammars of llama.cpp take the texts that they take there, and no others."""

import pytest

from deepzig.errors import RequestError
from deepzig.text.constraint import Grammars, from_text
from deepzig.text.tokenizer import Tokenizer

# From llama.cpp's folder `grammars`.
JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"""
ARITHMETIC = r"""
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""
LIST = r"""
root ::= item+

# Excludes various line break characters
item ::= "- " [^\r\n\x0b\x0c\x85\u2028\u2029]+ "\n"
"""
CHESS = r"""
# Specifies chess moves as a list in algebraic notation, using PGN conventions

# Force first move to "1. ", then any 1-2 digit number after, relying on model to follow the pattern
root    ::= "1. " move " " move "\n" ([1-9] [0-9]? ". " move " " move "\n")+
move    ::= (pawn | nonpawn | castle) [+#]?

# piece type, optional file/rank, optional capture, dest file & rank
nonpawn ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]

# optional file & capture, dest file & rank, optional promotion
pawn    ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?

castle  ::= "O-O" "-O"?
"""
JAPANESE = r"""
root   ::= jp-char+ ([ \t\n] jp-char+)*
jp-char     ::= hiragana | katakana | punctuation | cjk
hiragana    ::= [ぁ-ゟ]
katakana    ::= [ァ-ヿ]
punctuation ::= [、-〾]
cjk         ::= [一-鿿]
"""
C = r"""
root ::= (declaration)*
declaration ::= dataType identifier "(" parameter? ")" "{" statement* "}"
dataType  ::= "int" ws | "float" ws | "char" ws
identifier ::= [a-zA-Z_] [a-zA-Z_0-9]*
parameter ::= dataType identifier
statement ::=
    ( dataType identifier ws "=" ws expression ";" ) |
    ( identifier ws "=" ws expression ";" ) |
    ( identifier ws "(" argList? ")" ";" ) |
    ( "return" ws expression ";" ) |
    ( "while" "(" condition ")" "{" statement* "}" ) |
    ( "for" "(" forInit ";" ws condition ";" ws forUpdate ")" "{" statement* "}" ) |
    ( "if" "(" condition ")" "{" statement* "}" ("else" "{" statement* "}")? ) |
    ( singleLineComment ) |
    ( multiLineComment )
forInit ::= dataType identifier ws "=" ws expression | identifier ws "=" ws expression
forUpdate ::= identifier ws "=" ws expression
condition ::= expression relationOperator expression
relationOperator ::= ("<=" | "<" | "==" | "!=" | ">=" | ">")
expression ::= term (("+" | "-") term)*
term ::= factor(("*" | "/") factor)*
factor ::= identifier | number | unaryTerm | funcCall | parenExpression
unaryTerm ::= "-" factor
funcCall ::= identifier "(" argList? ")"
parenExpression ::= "(" ws expression ws ")"
argList ::= expression ("," ws expression)*
number ::= [0-9]+
singleLineComment ::= "//" [^\n]* "\n"
multiLineComment ::= "/*" ( [^*] | ("*" [^/]) )* "*/"
ws ::= ([ \t\n]+)
"""
# As its json_schema_to_grammar writes them.
SCHEMA = r"""
a-kv ::= "\"a\"" space ":" space integer
integer ::= ("-"? integral-part) space
integral-part ::= [0] | [1-9] [0-9]{0,15}
root ::= "{" space a-kv "}" space
space ::= | " " | "\n"{1,2} [ \t]{0,20}
"""


@pytest.fixture(scope="module")
def grammars(stories_tokenizer: Tokenizer) -> Grammars:
    assert stories_tokenizer.eos_token_id is not None
    return Grammars(stories_tokenizer, stories_tokenizer.vocab_size, [stories_tokenizer.eos_token_id])


def fits(grammars: Grammars, tokenizer: Tokenizer, grammar: str, text: str) -> bool:
    """Whether an answer may be `text`, and end there."""
    constraint = grammars.compile(from_text(grammar))
    for token in tokenizer.encode(text, add_bos=False, allow_special=False):
        if constraint.is_complete or not constraint.allowed()[token]:
            return False
        constraint.accept(token)
    return constraint.is_complete or bool(constraint.allowed()[tokenizer.eos_token_id])


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (JSON, ['{"a": [1, 2.5e3, true, null, "x\\n\\u00e9 é"]}', "{}"], ["[1]", '{"a"', '{"a": tru}']),
        (ARITHMETIC, ["a=b\n", "a+b = ( c *12 )\n", "a=b\n\n\nc = 1\n"], ["a+", "a=b"]),
        (LIST, ["- a b\n- c\n"], ["x", "- a"]),
        (CHESS, ["1. e4 e5\n2. Nf3 Nc6\n"], ["2. e4", "1. e4 e9\n"]),
        (JAPANESE, ["漢字 ひらがな"], ["abc", "漢  字"]),
        (C, ["int main(int argc){int a = 1;//b c\n/* a*b */return a+f(1, 2);}"], ["int main(){x}", "main"]),
        (SCHEMA, ['{"a": 12}', '{"a": 12}\n  '], ['{"a": "x"}', '{"a": 012}']),
        ("root ::= .*", ["any é\n x", ""], []),
        (r'root ::= "\x41\t\u00e9" [\x41-\x43\u00e9]', ["A\téB", "A\téé"], ["AtéB", "A\téD"]),
        (r'root ::= "\U0001F600"', ["😀"], ["é"]),
        (r"root ::= [\[\]\-^&]+ [^\]] [+-]", ["[]-^&a-", "^b+"], ["a", "[]]+", "[]a,"]),
        ('root ::= "ab" | [a-z] "bc" | "/" [/#] "#"', ["ab", "abc", "//#"], ["a", "bab"]),
        ('root ::= "ab" | start "bc" # c ::= d\nstart ::= [a-z] | start "x"', ["ab", "abc", "axxbc"], ["abx"]),
        ('# root ::= x\nroot ::= | "" | Foo-Bar1 |\r\n "b"\n | foo_Bar1\nFoo-Bar1 ::= "z"\nfoo_Bar1 ::= ()',
         ["", "z", "b"], ["x"]),
        ('root ::= ("ab"){2,3} "c"{2} "d"{ 1, }', ["ababccd", "abababccdd"], ["abccd", "ababcd", "ababcc"]),
        ('root ::= "a"\nroot ::= "b"', ["b"], ["a"]),
        ("root ::= line*\nline ::= [a-z ]+ | word\nword ::= [a-z]+", ["once upon a time there was"], ["A"]),
    ],
)  # fmt: skip
def test_texts_that_fit(
    grammars: Grammars, stories_tokenizer: Tokenizer, grammar: str, good: list[str], bad: list[str]
) -> None:
    for text in good:
        assert fits(grammars, stories_tokenizer, grammar, text), text
    for text in bad:
        assert not fits(grammars, stories_tokenizer, grammar, text), text


@pytest.mark.parametrize(
    ("grammar", "told"),
    [
        ('a ::= "b"', "no rule root"),
        ("root ::= b", "no rule 'b'"),
        ('"a" root ::= "b"', "cannot be read at"),
        ('root ::= "b', "cannot be read at"),
        ("root ::= [b", "cannot be read at"),
        ('root ::= ("b" | a\na ::= ")"', "parentheses"),
        ('root ::= "b")', "parentheses"),
        ("root ::= [z-a]", "turn it round"),
        (r"root ::= [\d]", "no character"),
        (r'root ::= "\ud800"', "no character"),
        ('root ::= * "a"', "cannot be used"),
    ],
)
def test_what_is_no_grammar_is_refused(grammars: Grammars, grammar: str, told: str) -> None:
    with pytest.raises(RequestError, match=told) as caught:
        grammars.compile(from_text(grammar))
    assert "\n" not in str(caught.value)
