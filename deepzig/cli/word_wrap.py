"""Breaks the lines of growing text between words, for a terminal. Called by `chat_output`."""

from rich.cells import cell_len

FENCE = "```"
TAB = 8  # columns, at most


class WordWrap:
    """Holds a word back until it is whole. The terminal breaks code between fences, so that it can be copied."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._column = 0  # where the next character goes
        self._blanks = ""  # before the word
        self._word = ""
        self._is_longer = False  # the last word is wider than the terminal
        self._line = ""  # the line's first characters, as many as a fence has
        self._is_code = False

    def push(self, text: str) -> str:
        """Add `text`, and return what can be shown."""
        return "".join(map(self._take, text))

    def finish(self) -> str:
        """The last word."""
        return self._place()

    def _take(self, character: str) -> str:
        if character == "\n":
            return self._end_line()
        if len(self._line) < len(FENCE):
            self._line = (self._line + character).lstrip()
        if self._is_code or self._line == FENCE:
            shown = self._place() + self._blanks + character
            self._blanks = ""
            return shown
        if character.isspace():
            shown = self._place()
            self._blanks += character
            return shown
        shown = self._place() if self._word and _ends_word(self._word[-1], character) else ""
        self._word += character
        if cell_len(self._word) >= self._columns:
            shown += self._place()
            self._is_longer = True
        return shown

    def _end_line(self) -> str:
        shown = self._place() + "\n"
        if self._line == FENCE:
            self._is_code = not self._is_code
        self._blanks, self._line, self._column, self._is_longer = "", "", 0, False
        return shown

    def _place(self) -> str:
        """The word after the blanks before it, or on a line of its own."""
        if not self._word:
            return ""
        width = cell_len(self._word)
        if self._is_longer and not self._blanks:  # the terminal breaks it
            shown, self._column = self._word, (self._column + width - 1) % self._columns + 1
            self._word = ""
            return shown
        self._is_longer = False
        room = self._columns - self._column - cell_len(self._blanks.replace("\t", " " * TAB))
        if width > room and self._column > 0:
            shown, self._column = f"\n{self._word}", width
        else:
            shown, self._column = self._blanks + self._word, self._columns - room + width
        self._blanks = self._word = ""
        return shown


def _ends_word(last: str, character: str) -> bool:
    """Whether a line may be broken between two characters that are no blanks: where one is wide, as in Chinese."""
    return cell_len(last) > 1 or cell_len(character) > 1
