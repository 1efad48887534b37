"""Tokens out: load a bundle, generate, stream.

from quasar.runtime import load, SamplingParams
with load("demo-int8", chain="prompt-lookup > int8") as model:
    done = model.generate("A baker has 24 rolls ...", SamplingParams(max_new_tokens=128))
    print(done.text, done.ids, done.finish_reason, done.statistics)
"""

from quasar.runtime.answer import Logprob, Piece, Result
from quasar.runtime.generation import Generation
from quasar.runtime.guided.guide import Guide
from quasar.runtime.loading import load
from quasar.runtime.model import Model
from quasar.runtime.model_options import ModelOptions
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.scoring import Text
from quasar.runtime.speculation import Speculation
from quasar.runtime.statistics import Statistics

__all__ = [
    "Generation",
    "Guide",
    "Logprob",
    "Model",
    "ModelOptions",
    "Piece",
    "Result",
    "SamplingParams",
    "Speculation",
    "Statistics",
    "Text",
    "load",
]
