"""The page's readers of Markdown, TeX and code, run by Node: what becomes of a text, and that none does harm.

`trees` are what `dom.js` turns into nodes. Without Node these tests are skipped; Chromium runs the same code in
test_answers.py.
"""

import json
import random
import shutil
import subprocess
from typing import Any

import pytest

from deepzig.server.app import STATIC

SCRIPT = f"""
import {{ toDom }} from {json.dumps((STATIC / "dom.js").as_uri())};
import {{ parseMarkdown }} from {json.dumps((STATIC / "markdown.js").as_uri())};
const node = () => ({{ setAttribute() {{}}, append() {{}} }});
globalThis.document = {{ createElement: node, createElementNS: node, createTextNode: node }};
let input = "";
for await (const piece of process.stdin) input += piece;
const read = (text) => {{
  const trees = parseMarkdown(text).map((block) => block.tree());
  trees.forEach((tree) => toDom(tree)); // raises for a tag or attribute that is not on its lists
  return trees;
}};
console.log(JSON.stringify(JSON.parse(input).map(read)));
"""


def trees_of(*texts: str) -> list[list[Any]]:
    """The blocks of each text."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed (Debian: apt-get install nodejs)")
    command = [node, "--input-type=module", "--eval", SCRIPT]
    ran = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def html(tree: Any) -> str:
    """A tree as markup, to be compared; texts are not escaped."""
    if isinstance(tree, str):
        return tree
    tag, attributes, *children = tree
    listed = "".join(f' {name}="{value}"' for name, value in attributes.items())
    return f"<{tag}{listed}>{''.join(map(html, children))}</{tag}>"


def plain(tree: Any) -> str:
    """The text of a tree."""
    return tree if isinstance(tree, str) else "".join(map(plain, tree[2:]))


ALIGNED = 'class="tex-aligned" displaystyle="true"'
ROW_A, ROW_B = (f"<mtr><mtd><mi>{letter}</mi></mtd></mtr>" for letter in "ab")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# A *b* #", "<h1>A <em>b</em></h1>"),
        ("**a *b* c** snake_case_name 2*3*4", "<p><strong>a <em>b</em> c</strong> snake_case_name 2<em>3</em>4</p>"),
        ("a ``x ` y`` b\n~~c~~", "<p>a <code>x ` y</code> b<br></br><del>c</del></p>"),
        ("1. a\n   - b\n2. c", "<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>"),
        ("3) a\n4) b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("- a\n\n- b", "<ul><li><p>a</p></li><li><p>b</p></li></ul>"),
        ("1. a\n```\n\tx\n```", "<ol><li>a</li></ol>"),
        ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
        ("$a_1$, $5 or $6", '<p><math display="inline"><msub><mi>a</mi><mn>1</mn></msub></math>, $5 or $6</p>'),
        ("\\(\\foo\\)", '<p><math display="inline"><mtext class="tex-unknown">\\foo</mtext></math></p>'),
        ("$\\frac{1$", "<p><code>\\frac{1</code></p>"),
        ("$a \\\\[4pt] \\hline b$", f'<p><math display="inline"><mtable {ALIGNED}>{ROW_A}{ROW_B}</mtable></math></p>'),
        ("[a](javascript:alert(1))", "<p><span>a (javascript:alert(1))</span></p>"),
        ("<b>&lt;i&gt;</b>", "<p><b><i></b></p>"),
        (
            "![x](https://e.example/i.png)",
            '<p><a href="https://e.example/i.png" target="_blank" rel="noopener noreferrer nofollow">image: x</a></p>',
        ),
    ],
)  # fmt: skip
def test_what_becomes_of_a_text(text: str, expected: str) -> None:
    ((first, *_),) = trees_of(text)
    assert html(first) == expected


def test_code_keeps_every_character() -> None:
    code = "def f(x):\n\treturn 'a' # {x}\n\n<b>&amp;</b> `\\` \"unclosed\n"
    languages = ["python", "js", "rust", "sh", "sql", "json", "css", "html", "diff", "constructor", ""]
    for (block,) in trees_of(*(f"~~~{language}\n{code}\n~~~" for language in languages)):
        assert plain(block[3]) == code


def test_comments_and_strings_of_code_span_lines() -> None:
    ((c,), (python,), (html_block,)) = trees_of(
        "```c\n/* it\n isn't b */ int x;\n```", '```py\n"""a\nit\'s"""\n```', "```html\n<!-- a\n b --> <c>\n```"
    )
    assert '<span class="code-comment">/* it\n isn\'t b */</span>' in html(c)
    assert '<span class="code-string">"""a\nit\'s"""</span>' in html(python)
    assert '<span class="code-comment"><!-- a\n b --></span>' in html(html_block)


def test_a_table_is_no_larger_than_its_text() -> None:
    ((table,),) = trees_of("|a" * 300 + "\n" + "|-" * 300 + "\n" + "|b|\n" * 300)
    assert html(table).count("<td") == 300


def test_random_texts_give_only_what_dom_js_lets_through() -> None:
    pieces = [
        "*", "_", "**", "~~", "`", "```", "$", "$$", "\\(", "\\)", "\\[", "\\]", "\\frac", "\\begin{cases}",
        "\\end{cases}", "\\left(", "\\right)", "{", "}", "^", "&", "\\\\", "|", "|-|", "[", "](", ")", "<script>", "- ",
        "https://a.b", "1. ", "> ", "# ", "\n", "\n\n", "    ", "\t", "a", "Ä", "😀", "x_1", " ", "!", "&lt;", "\r\n",
        "\x00",
    ]  # fmt: skip
    randomness = random.Random(1)
    texts = ["".join(randomness.choices(pieces, k=40)) for _ in range(3000)]
    assert len(trees_of(*texts)) == 3000


def test_a_text_that_grows_keeps_its_earlier_blocks() -> None:
    text = "# A\n\nb *c*\n\n- d\n- e\n\n```py\nf = 1\n```\n\n| g |\n|---|\n| h |\n\ni"
    growing = trees_of(*(text[:end] for end in range(1, len(text) + 1)))
    final = growing[-1]
    for blocks in growing:
        assert blocks[:-1] == final[: len(blocks) - 1]


def test_deep_and_long_texts_end_soon() -> None:
    texts = [
        "> " * 2000, "- " * 2000 + "a", "*a " * 5000, "**a *b " * 3000, "[" * 5000, "`a``b```c" * 2000, "a|b\n" * 5000,
        "$" + "{" * 5000 + "$", "$a " * 5000, "$" + "\\hat" * 4000 + "$", "$" + "\\frac" * 3000 + "$",
        "\\[a\n" * 1000, "*a" * 5000 + "a*" * 5000,
        "\\(" * 150_000, *(f"```{language}\n{code * 29_000}\n```\n" * 12 for language, code in (
            ("css", "a-"), ("html", "a-"), ("yaml", "--"),
        )),
    ]  # fmt: skip
    assert len(trees_of(*texts)) == len(texts)  # the time limit of `trees_of` is for all together
