"""Which constraint a request puts on its answer. Called by `chat` and `completions`; will call `text.constraint`."""

from deepzig.engine.sampling import TokenConstraint
from deepzig.server.requests import ChatRequest
from deepzig.server.served_model import ServedModel


def chat_constraint(model: ServedModel, request: ChatRequest, *, in_reasoning: bool) -> TokenConstraint | None:
    """None: the answer is free."""
    return None
