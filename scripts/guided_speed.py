"""What drafts of forced tokens save: answers of a JSON schema with them, without them, and without any drafts.

usage: guided_speed.py BUNDLE [--chain "int8"] [--repeat 5]

Four orders in words are to be written as JSON. Variants take turns; printed are medians over the repeats of the seconds in which
all four were decoded. Every answer is read as JSON and compared with the schema, and all variants must give the same tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from quasar.runtime import Guide, Model, Result, SamplingParams, load
from quasar.runtime.proposers.grammar import Grammar
from quasar.runtime.speculation import Speculation

NAMES = {
    "order_status": ["pending_payment", "waiting_for_shipment", "partially_shipped", "delivered_to_customer"],
    "preferred_payment_method": ["credit_card", "bank_transfer", "cash_on_delivery"],
    "country_code": ["DE", "FR", "IT"],
}
ENUMS = {name: {"enum": values} for name, values in NAMES.items()}


def described(properties: dict[str, Any]) -> dict[str, Any]:
    """An object that has all of these properties and no others."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


ADDRESS = {
    "street_and_house_number": {"type": "string", "maxLength": 40},
    "postal_code": {"type": "string", "pattern": "^[0-9]{5}$"},
    "city_name": {"type": "string", "maxLength": 30},
    "country_code": ENUMS["country_code"],
}
ORDER = {
    "customer_full_name": {"type": "string", "maxLength": 40},
    "order_status": ENUMS["order_status"],
    "total_price_in_euros": {"type": "integer", "minimum": 0, "maximum": 9999},
    "preferred_payment_method": ENUMS["preferred_payment_method"],
    "shipping_address": described(ADDRESS),
    "is_a_returning_customer": {"type": "boolean"},
}
TEXTS = (
    "Anna Schmidt, who bought from us before, ordered two oak chairs for 240 euros and paid by credit card. Her parcel was "
    "handed over to her at Lindenweg 12, 50674 Cologne, Germany.",
    "A new customer, Paul Girard of 8 rue des Carmes, 31000 Toulouse, France, wants a lamp for 89 euros. We wait for his bank "
    "transfer.",
    "Lucia Conti bought six glasses for 54 euros, to be paid in cash when they come. Four are on their way to Via Roma 21, "
    "10123 Turin, Italy, two follow. She is a regular.",
    "The desk of Jonas Weber, 415 euros by credit card, is packed and goes to Hafenstrasse 3, 20457 Hamburg, Germany tomorrow. "
    "It is his first order.",
)


def check(text: str) -> None:
    """Compare an answer with the schema."""
    order = json.loads(text)
    assert (list(order), list(order["shipping_address"])) == (list(ORDER), list(ADDRESS)), text
    assert all({**order, **order["shipping_address"]}[name] in values for name, values in NAMES.items()), text


@contextmanager
def forced(drafted: bool) -> Iterator[None]:
    """Whether forced tokens are drafted."""
    propose = Grammar.propose
    if not drafted:
        Grammar.propose = lambda self, asks: [[] for _ in asks]  # type: ignore[method-assign]
    try:
        yield
    finally:
        Grammar.propose = propose  # type: ignore[method-assign]


def answers(model: Model, variant: str) -> list[Result]:
    """All answers of a variant, one after another."""
    params = SamplingParams(max_new_tokens=400, guide=Guide.json_schema(described(ORDER)))
    speculation = Speculation(draft_length=0) if variant == "no drafts" else None
    asked = [[{"role": "user", "content": f"{text} Write this order as JSON."}] for text in TEXTS]
    with forced(variant == "forced"):
        return [model.generate(one, params, speculation=speculation) for one in asked]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bundle")
    p.add_argument("--chain", default="int8")
    p.add_argument("--repeat", type=int, default=5)
    args = p.parse_args()
    seconds: dict[str, list[float]] = {"forced": [], "not forced": [], "no drafts": []}
    last: dict[str, list[Result]] = {}
    with load(args.bundle, chain=args.chain, batch_invariant=True) as model:
        for turn in range(args.repeat + 1):
            for variant in seconds:
                last[variant] = done = answers(model, variant)
                for one in done:
                    check(one.text)
                if turn:  # the first measures what passes cost
                    seconds[variant].append(sum(one.statistics.decode_seconds for one in done))
    assert len({str([one.ids for one in done]) for done in last.values()}) == 1
    for variant, found in seconds.items():
        done, median = last[variant], statistics.median(found)
        rounds, tokens = sum(one.statistics.rounds for one in done), sum(len(one.ids) for one in done)
        drafted = sum(one.statistics.drafted_by.get("grammar", 0) for one in done)
        print(
            f"{variant:<10} {tokens} tokens, {drafted} of them by grammar, {rounds} rounds, {median:.2f} s "
            f"({min(found):.2f} to {max(found):.2f}), x {statistics.median(seconds['no drafts']) / median:.2f} of no drafts"
        )


if __name__ == "__main__":
    main()
