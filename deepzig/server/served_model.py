"""ServedModel: the loaded model with what the server must know of it. Made when loading ends; read by the endpoints."""

import hashlib
import time
from dataclasses import dataclass
from functools import cached_property

from deepzig.checkpoint.sizes import count_parameters
from deepzig.engine.llm import LLM
from deepzig.server.replies import ModelMeta, ModelReply
from deepzig.text.answer_format import AnswerFormat, ThinkIds
from deepzig.text.chat import ChatTemplate
from deepzig.text.constraint import Grammars
from deepzig.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ServedModel:
    """An LLM under the name that clients give."""

    id: str
    llm: LLM
    created: int  # Unix time at which it was loaded
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None
    answer_format: AnswerFormat
    reasoning_format: str  # see `settings.REASONING_FORMATS`
    n_params: int

    @classmethod
    def of(cls, llm: LLM, model_id: str | None = None, reasoning_format: str = "deepseek") -> "ServedModel":
        """What `llm` is; without a name of its own it goes by its folder's, ? for bytes that are no UTF-8."""
        template = llm.chat_template
        return cls(
            id=(model_id or llm.directory.resolve().name).encode(errors="replace").decode(),
            llm=llm,
            created=int(time.time()),
            tokenizer=llm.tokenizer,
            chat_template=template,
            answer_format=AnswerFormat.of_template(template.source if template else None),
            reasoning_format=reasoning_format,
            n_params=count_parameters(llm.config).total,
        )

    @property
    def n_context(self) -> int:
        """Tokens of prompt and answer together."""
        return self.llm.n_context

    @cached_property
    def think_ids(self) -> ThinkIds | None:
        """Token ids of <think> and </think>, if the tokenizer has both."""
        return None if self.tokenizer is None else ThinkIds.of_tokenizer(self.tokenizer)

    @cached_property
    def grammars(self) -> Grammars | None:
        """Compiles grammars for this model; None if it has no tokenizer."""
        if self.tokenizer is None:
            return None
        return Grammars(self.tokenizer, self.llm.config.vocab_size, self.llm.defaults.eos_token_ids)

    @cached_property
    def tool_template(self) -> ChatTemplate | None:
        """The chat template that tells of tools; None if the model cannot call any."""
        if self.chat_template is None or self.answer_format.tools is None:
            return None
        return self.chat_template.telling_tools(self.answer_format.tools)

    @cached_property
    def fingerprint(self) -> str:
        """OpenAI's system_fingerprint: changes when the model or the way it computes does."""
        facts = repr((self.id, self.llm.config, self.llm.size, self.llm.model.numerics))
        return "fp_" + hashlib.sha256(facts.encode()).hexdigest()[:12]

    def describe(self) -> ModelReply:
        """The entry of /v1/models."""
        meta = ModelMeta(
            n_ctx=self.n_context,
            n_vocab=self.llm.config.vocab_size,
            n_params=self.n_params,
            size=self.llm.size.nbytes,
            format=self.llm.size.main_format,
            has_chat_template=self.chat_template is not None,
            has_tools=self.answer_format.tools is not None,
            has_thinking=self.answer_format.has_thinking,
        )
        return ModelReply(id=self.id, created=self.created, meta=meta, max_model_len=self.n_context)
