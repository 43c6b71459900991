"""The shipped hardware cards by name, read from `scenarios/library/hardware`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import scenarios
from hwmodels.cards import CardSet, CpuKernelCard, DeviceCard, HostCard, LinkCard, NodeCard, SsdCard
from hwmodels.collectives import CollectiveCard
from hwmodels.copies import CopyCard
from hwmodels.expert_exchange import ExchangeCard
from hwmodels.kernels import KernelCard, Kernels
from scenarios.errors import HardwareError
from scenarios.explain import did_you_mean
from scenarios.loader import load_spec

Card = TypeVar("Card", DeviceCard, LinkCard, HostCard, NodeCard, SsdCard, KernelCard, CpuKernelCard)

LIBRARY = Path(scenarios.__file__).parent / "library" / "hardware"


def find_device(name: str, cards: CardSet | None = None) -> DeviceCard:
    """The device card of this name; raises HardwareError where there is none."""
    return _find("device", (cards or list_cards()).devices, name)


def find_link(name: str, cards: CardSet | None = None) -> LinkCard:
    """The link card of this name; raises HardwareError where there is none."""
    return _find("link", (cards or list_cards()).links, name)


def find_host(name: str, cards: CardSet | None = None) -> HostCard:
    """The host card of this name; raises HardwareError where there is none."""
    return _find("host", (cards or list_cards()).hosts, name)


def find_node(name: str, cards: CardSet | None = None) -> NodeCard:
    """The node card of this name; raises HardwareError where there is none."""
    return _find("node", (cards or list_cards()).nodes, name)


def find_ssd(name: str, cards: CardSet | None = None) -> SsdCard:
    """The card of a drive of this name; raises HardwareError where there is none."""
    return _find("SSD", (cards or list_cards()).ssds, name)


def find_kernels(name_or_path: str, base: Path = Path(), cards: CardSet | None = None) -> Kernels:
    """The kernel card of this name, or the first of a YAML file (relative to `base`), with the cards it rests on.

    Cards of the file come before shipped ones of the same name; their tables are relative to it. Raises HardwareError
    where a card is missing or its bases go in a circle, ScenarioError where the file is wrong.
    """
    known, name = (cards or list_cards()).kernels, name_or_path
    if name.endswith((".yaml", ".yml")):
        own = _own_cards(base / name).kernels
        if not own:
            raise HardwareError(f"{base / name}: holds no `kernels:` card")
        known, name = (*own, *known), own[0].name
    chain: list[KernelCard] = []
    wanted: str | None = name
    while wanted is not None:
        card = _find("kernel", known, wanted, of=f"{base / name_or_path}: " if name != name_or_path else "")
        if card in chain:
            raise HardwareError(f"kernel card {name}: its bases go in a circle at {wanted}")
        chain.append(card)
        wanted = card.base
    return Kernels(cards=tuple(chain))


def find_cpu_kernels(name: str) -> CpuKernelCard:
    """The card of CPU constants of this name; raises HardwareError where there is none."""
    return _find("CPU kernel", list_cards().cpu_kernels, name)


def find_collectives(link: str, library: str = "nccl", cards: CardSet | None = None) -> CollectiveCard | None:
    """The card of a library's collectives measured on this kind of link, or None where nobody measured."""
    known = (cards or list_cards()).collectives
    return next((card for card in known if (card.link, card.library) == (link, library)), None)


def exchanges_on(*links: str | None, cards: CardSet | None = None) -> tuple[ExchangeCard, ...]:
    """The cards of dispatch and combine kernels measured on any of these links."""
    return tuple(card for card in (cards or list_cards()).exchanges if card.link in links)


def links_with(kernel: str) -> tuple[str, ...]:
    """Names of the links that a kernel was measured on: collectives of a library, or dispatch and combine."""
    cards = list_cards()
    collectives = [card.link for card in cards.collectives if card.library == kernel]
    return tuple(collectives + [card.link for card in cards.exchanges if card.kernel == kernel])


def find_copies(link: str) -> CopyCard | None:
    """The card of host copies measured on this kind of link, or None where nobody measured."""
    return next((card for card in list_cards().copies if card.link == link), None)


def cards_with(path: Path) -> CardSet:
    """The cards of a file, then all shipped ones: where names or uses agree, those of the file count.

    Raises ScenarioError where the file is wrong.
    """
    own, shipped = _own_cards(path), list_cards()
    both = {kind: getattr(own, kind) + _not_replaced(own, shipped, kind) for kind in CardSet.model_fields}
    return CardSet(**both)


def _own_cards(path: Path) -> CardSet:
    """The cards of a user's file; tables of its kernel cards are relative to it."""
    own = load_spec(path, CardSet)
    return own.model_copy(update={"kernels": tuple(card.below(path.parent) for card in own.kernels)})


def _not_replaced(own: CardSet, shipped: CardSet, kind: str) -> tuple[Any, ...]:
    """Shipped cards of a kind less those whose names the file has."""
    names = {card.name for card in getattr(own, kind)}
    return tuple(card for card in getattr(shipped, kind) if card.name not in names)


@cache
def list_cards() -> CardSet:
    """All shipped cards, in the order of files and of cards in a file."""
    return read_cards(LIBRARY)


def read_cards(folder: Path) -> CardSet:
    """All cards of the YAML files of a folder.

    Raises ScenarioError where a file is wrong, HardwareError where two files name cards of one kind alike.
    """
    card_sets = {path: load_spec(path, CardSet) for path in sorted(folder.glob("*.yaml"))}
    if not card_sets:
        raise HardwareError(f"{folder}: holds no hardware cards (*.yaml); is the installation complete?")
    for kind in CardSet.model_fields:
        _check_names_once(card_sets, kind)
    sets, kinds = card_sets.values(), CardSet.model_fields
    return CardSet(**{kind: tuple(card for cards in sets for card in getattr(cards, kind)) for kind in kinds})


def _check_names_once(card_sets: dict[Path, CardSet], kind: str) -> None:
    """Raises HardwareError where two files hold a card of the same kind and name."""
    home: dict[str, Path] = {}
    for path, cards in card_sets.items():
        for card in getattr(cards, kind):
            if card.name in home:
                raise HardwareError(f"{path}: {kind} {card.name} is also in {home[card.name].name}; rename one of them")
            home[card.name] = path


def _find(kind: str, cards: tuple[Card, ...], name: str, of: str = "") -> Card:
    for card in cards:
        if card.name == name:
            return card
    names = [card.name for card in cards]
    variants = [known for known in names if name and known.startswith(name)]
    hint = f" (did you mean {' or '.join(variants)}?)" if variants else did_you_mean(name, names)
    raise HardwareError(f"{of}no {kind} card '{name[:200]}'{hint}; see `moesim list hardware`")
