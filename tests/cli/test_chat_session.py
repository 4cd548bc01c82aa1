"""The conversation of `deepzig chat`: turns, prompts that reuse what was read, answers that are stopped or fail."""

from collections.abc import Iterator
from contextlib import closing

import pytest

import deepzig
from deepzig.cli.chat_session import ChatSession, Turn
from deepzig.engine.llm import LLM
from deepzig.errors import ContextLengthError, NonFiniteLogitsError, RequestError
from deepzig.text.answer_parser import Content, Reasoning
from tests.cli.chats import cached, said, script, tokens_of
from tests.talkers import TEMPLATES, make_talker


@pytest.fixture(scope="module")
def stories() -> Iterator[LLM]:
    with deepzig.load("stories") as llm:
        yield llm


@pytest.fixture(scope="module")
def talkers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LLM]]:
    models = {
        name: deepzig.load(make_talker(tmp_path_factory.mktemp("talker"), template))
        for name, template in TEMPLATES.items()
    }
    yield models
    for llm in models.values():
        llm.close()


@pytest.fixture
def story(stories: LLM) -> ChatSession:
    session = ChatSession(stories)
    session.params = deepzig.SamplingParams(max_tokens=12, temperature=0)
    return session


# ---- what was read is not read again


def test_the_second_turn_of_a_story_reads_only_what_is_new(story: ChatSession) -> None:
    said(story, "One day, a fox")
    assert story.report is not None and story.report.n_tokens == 12
    before = story.report.timings.prompt_tokens + 12
    said(story, "Then it rained.")
    assert cached(story) == before - 1, "all but the last token, which was chosen and never computed"
    assert story.report.timings.prompt_tokens - before < 8
    assert story.totals.cached_tokens >= cached(story) and story.totals.answers == 2


@pytest.mark.parametrize("family", ["V2.5"])
def test_the_second_turn_of_a_chat_reads_only_what_is_new(
    talkers: dict[str, LLM], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = talkers[family]
    session = ChatSession(llm)
    session.system = f"You are {family}."
    answer = tokens_of(llm, "It is blue because of the air.", by_character=True)
    assert answer != tokens_of(llm, "It is blue because of the air.")
    script(monkeypatch, llm, answer, tokens_of(llm, "Yes."))
    assert said(session, "Why is the sky blue?") == ("", "It is blue because of the air.")
    assert session.report is not None
    before = session.report.timings.prompt_tokens + len(answer)
    assert said(session, "Really?") == ("", "Yes.")
    assert cached(session) == before - 1, "the tokens that were said, not those of their text"


def test_thoughts_are_dropped_and_the_rest_is_kept(talkers: dict[str, LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    llm = talkers["R1"]
    session = ChatSession(llm)
    script(monkeypatch, llm, *[tokens_of(llm, "Let me think.\n</think>\n\nThe air.")] * 3)
    assert said(session, "Why is the sky blue?") == ("Let me think.", "The air.")
    assert session.report is not None
    first = session.report.timings.prompt_tokens
    said(session, "Really?")
    assert cached(session) == first - 1, "up to the mark that opened the thoughts"
    second = session.report.timings.prompt_tokens
    said(session, "Sure?")
    assert cached(session) == second - 1
    assert session.messages[1] == {
        "role": "assistant", "content": "The air.", "reasoning_content": "Let me think.",
    }  # fmt: skip


def test_thoughts_may_quote_their_end(talkers: dict[str, LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    llm = talkers["R1"]
    thoughts = "They end with </think>."
    script(monkeypatch, llm, tokens_of(llm, thoughts, by_character=True) + tokens_of(llm, "</think>Yes."))
    assert said(ChatSession(llm), "What ends thoughts?") == (thoughts, "Yes.")


def test_thoughts_that_the_prompt_closes_do_not_begin_again(
    talkers: dict[str, LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, talkers["V3.1"], tokens_of(talkers["V3.1"], "<think> is a tag."))
    assert said(ChatSession(talkers["V3.1"]), "What is it?") == ("", "<think> is a tag.")


def test_undo_and_another_way_reuse_what_stays(story: ChatSession) -> None:
    said(story, "One day, a bear")
    assert story.report is not None
    before = story.report.timings.prompt_tokens + 12
    said(story, "Then it snowed.")
    assert [turn.message for turn in story.undo()] == [" Then it snowed."]
    said(story, "Later the sun came.")
    assert cached(story) == before


# ---- what a model is


def test_who_tells_no_roles_writes_a_story(story: ChatSession, talkers: dict[str, LLM]) -> None:
    assert story.is_story and story.defaults.max_tokens == 256
    for name, llm in talkers.items():
        session = ChatSession(llm)
        assert not session.is_story and session.defaults.max_tokens == 1024
        assert session.switches_thinking == (name == "V3.1")


def test_a_story_is_one_text(story: ChatSession) -> None:
    _, answer = said(story, "Once upon a time")
    prompt = story.llm.submit
    asked: list[list[int]] = []

    def submit(ids: list[int], params: deepzig.SamplingParams) -> deepzig.Generation:
        asked.append(ids)
        return prompt(ids, params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(story.llm, "submit", submit)
        said(story, "")
        said(story, "Tom came.")
        said(story, ", too")
    assert story.llm.tokenizer is not None
    texts = [story.llm.tokenizer.decode(ids) for ids in asked]
    assert texts[0] == "Once upon a time" + answer
    assert texts[1] == "".join(turn.message + turn.answer for turn in story.turns[:2]) + " Tom came."
    assert texts[2].endswith(", too") and texts[2].startswith(texts[1])
    assert all(ids[0] == story.llm.tokenizer.bos_token_id for ids in asked)


def test_a_story_has_no_system_message_and_no_switch(story: ChatSession) -> None:
    with pytest.raises(RequestError, match="no system message"):
        story.system = "Be kind."
    with pytest.raises(RequestError, match="no switch for thinking"):
        story.thinking = True
    assert story.system is None and story.thinking is None


def test_thinking_is_switched(talkers: dict[str, LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    llm = talkers["V3.1"]
    session = ChatSession(llm)
    script(monkeypatch, llm, tokens_of(llm, "Hm.</think>Yes."), tokens_of(llm, "No."))
    session.thinking = True
    assert said(session, "Is it?") == ("Hm.", "Yes.")
    session.thinking = False
    assert said(session, "Is it?") == ("", "No.")
    with pytest.raises(RequestError, match="no switch for thinking"):
        ChatSession(talkers["R1"]).thinking = False


def test_a_model_without_a_tokenizer_cannot_chat(stories: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stories, "tokenizer", None)
    with pytest.raises(RequestError, match="no tokenizer"):
        ChatSession(stories)


# ---- answers that end early


def test_what_was_said_before_the_stop_is_kept(story: ChatSession) -> None:
    story.params = deepzig.SamplingParams(max_tokens=900, ignore_eos=True, temperature=0)
    shown = ""
    with closing(story.ask("Once there was")) as events:
        for event in events:
            if isinstance(event, Content):
                shown += event.text
                story.stop()
    assert shown and story.turns == [Turn("Once there was", shown)]
    assert story.report is not None and story.report.end == "stopped" and story.report.n_tokens < 900
    story.params = deepzig.SamplingParams(max_tokens=3)
    assert said(story, "And")[1]
    assert cached(story) > 0 and story.llm.stats().n_running == 0


def test_a_turn_without_an_answer_is_dropped_and_can_be_asked_again(
    talkers: dict[str, LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = talkers["R1"]
    session = ChatSession(llm)
    thinks, answers = tokens_of(llm, "Hm. " * 200), tokens_of(llm, "Hm.</think>Yes.")
    script(monkeypatch, llm, thinks, answers, thinks, answers)
    for event in session.ask("Is it?"):
        if isinstance(event, Reasoning):
            session.stop()
    assert session.turns == [] and session.unanswered == "Is it?"
    list(session.retry())
    assert session.turns == [Turn("Is it?", "Yes.", "Hm.")] and session.unanswered is None
    for event in session.retry():
        if isinstance(event, Reasoning):
            session.stop()
    assert session.turns == [Turn("Is it?", "Yes.", "Hm.")], "the old answer stays where no other came"
    assert said(session, "And now?") == ("Hm.", "Yes.")


def test_a_reader_that_leaves_ends_the_answer(story: ChatSession) -> None:
    story.params = deepzig.SamplingParams(max_tokens=900, ignore_eos=True)
    with closing(story.ask("Once there was")) as events:
        next(event for event in events if isinstance(event, Content))
    assert len(story.turns) == 1 and story.turns[0].answer
    story.llm._thread.call(lambda: None)
    assert story.llm.stats().n_running == 0


def test_a_full_context_is_told_and_the_talk_goes_on(story: ChatSession) -> None:
    story.params = deepzig.SamplingParams(max_tokens=4, temperature=0)
    said(story, "Once")
    said(story, "word " * 600)
    with pytest.raises(ContextLengthError, match=r"the conversation has 1\d{3} tokens, but there is room for 1024"):
        list(story.ask("word " * 500))
    assert len(story.turns) == 2 and story.unanswered is not None and story.report is None
    story.undo()
    list(story.retry())
    assert len(story.turns) == 2 and story.turns[1].answer


def test_an_answer_ends_where_the_context_does(story: ChatSession) -> None:
    story.params = deepzig.SamplingParams(max_tokens=200, temperature=0, ignore_eos=True)
    said(story, "word " * 950)
    assert story.report is not None and story.report.end == "length" and story.report.n_tokens < 200
    assert story.n_used == 1024


def test_an_error_of_the_engine_keeps_what_was_said(story: ChatSession, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = story.llm.submit

    def failing(*arguments: object) -> deepzig.Generation:
        generation = submit(*arguments)  # type: ignore[arg-type]
        poll, polls = generation.poll, iter(range(100))

        def poll_twice() -> list[deepzig.StreamChunk]:
            chunks = poll()
            if chunks and next(polls) > 0:
                raise NonFiniteLogitsError("the model produced NaN")
            return chunks

        monkeypatch.setattr(generation, "poll", poll_twice)
        return generation

    story.params = deepzig.SamplingParams(max_tokens=900, ignore_eos=True)
    monkeypatch.setattr(story.llm, "submit", failing)
    with pytest.raises(NonFiniteLogitsError):
        list(story.ask("Once there was"))
    monkeypatch.undo()
    assert len(story.turns) == 1 and story.turns[0].answer
    story.params = deepzig.SamplingParams(max_tokens=3)
    assert said(story, "And")[1]


def test_nothing_can_be_taken_back_or_retried_before_anything_is_said(story: ChatSession) -> None:
    with pytest.raises(RequestError, match="nothing was said"):
        story.undo()
    with pytest.raises(RequestError, match="nothing was said"):
        list(story.retry())
    said(story, "Once")
    with pytest.raises(RequestError, match="turns to take back: 1"):
        story.undo(2)


def test_a_conversation_is_replaced(talkers: dict[str, LLM]) -> None:
    session = ChatSession(talkers["V2.5"])
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So.", "reasoning_content": "Hm."},
        {"role": "user", "content": "Really?"},
    ]
    session.replace_conversation(messages)
    assert session.messages == messages[:3] and session.unanswered == "Really?"
    session.replace_conversation([])
    assert session.messages == [] and session.system is None and session.unanswered is None
