"""Engines to draft with that are not the target at a lower precision: a part of its layers, or another model."""

from __future__ import annotations

from dataclasses import dataclass

from quasar.engines.errors import UsageError

INT4 = "int4"
"""The target itself with 4-bit weights, which is one of `--engines` as well."""
FORMS = "int4, pruned:SHARE, model:MODEL or none"


@dataclass(frozen=True)
class PrunedDraft:
    """Some of the target's layers.

    Attributes:
        share: of the layers, to keep; more than 0 and less than 1.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UsageError(
                f"--draft pruned:{self.share:g}: the share of the layers to keep must lie between 0 and 1, e.g. pruned:0.5"
            )

    @property
    def name(self) -> str:
        """The engine's name, with the percentage that is kept: `pruned-50`."""
        return f"pruned-{100 * self.share:g}"

    def count(self, num_hidden_layers: int) -> int:
        """How many layers stay: the nearest number to the share, and at least one.

        Raises:
            UsageError: all would stay.
        """
        count = max(1, int(self.share * num_hidden_layers + 0.5))
        if count == num_hidden_layers:
            raise UsageError(
                f"--draft pruned:{self.share:g}: that is all {num_hidden_layers} of the model's layers; "
                "give a smaller share, or draft with int4"
            )
        return count


@dataclass(frozen=True)
class ModelDraft:
    """Another checkpoint with the same vocabulary.

    Attributes:
        model: folder, Hugging Face id, alias, or `demo`.
    """

    model: str
    name = "draft"

    def __post_init__(self) -> None:
        if not self.model:
            raise UsageError("--draft model: names no model; give a checkpoint folder, a Hugging Face id or an alias after it")

    @property
    def asked(self) -> str:
        """How it was asked for."""
        return f"--draft model:{self.model}"


Draft = PrunedDraft | ModelDraft


def parse_drafts(text: str) -> tuple[bool, tuple[Draft, ...]]:
    """Read `--draft`: (whether int4 is in the list, the others).

    Raises:
        UsageError: it is not a list of drafts.
    """
    parts = [part.strip() for part in text.split(",")]
    if parts == ["none"]:
        return False, ()
    if "none" in parts:
        raise UsageError(f"--draft {text}: none stands alone")
    if len(set(parts)) != len(parts):
        raise UsageError(f"--draft {text}: name each draft once")
    return INT4 in parts, tuple(_parse(part) for part in parts if part != INT4)


def _parse(part: str) -> Draft:
    kind, colon, value = part.partition(":")
    if colon and kind == "model":
        return ModelDraft(value.strip())
    if not colon or kind != "pruned":
        raise UsageError(f"--draft {part}: not a draft; give {FORMS}, several separated by commas")
    try:
        share = float(value)
    except ValueError:
        raise UsageError(
            f"--draft {part}: {value!r} is not a number; give the share of the layers to keep, e.g. pruned:0.5"
        ) from None
    return PrunedDraft(share)
