"""What the epochs of a run do with its images: the account as text, as figures for a file, and as a
picture.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Any, Dict, List, Sequence

import numpy as np

from cian.data.pairs import GroupSampler
from cian.tools.engine.config import Config
from cian.tools.engine.report import text_table


@dataclass(frozen=True)
class PairingAccount:
    """Sums over some epochs of one pairing.

    Attributes
    ----------
    served : (N,) how often each image was in a group
    dropped : images left out, of each epoch
    groups : groups of each epoch
    pairs, pairs_without_class : pairs of images in a group, and those that share no class
    pairs_by_class, images_by_class : (num_classes,) pairs that share a class, images that hold it
    lonely : number of images that share no class with any other
    """

    pairing: str
    served: np.ndarray
    dropped: List[int]
    groups: List[int]
    pairs: int
    pairs_without_class: int
    pairs_by_class: np.ndarray
    images_by_class: np.ndarray
    lonely: int

    @property
    def epochs(self) -> int:
        """Number of epochs that were summed."""
        return len(self.groups)


def take_account(config: Config, labels: np.ndarray, names: Sequence[str], pairing: str,
                 epochs: int) -> PairingAccount:
    """Draw the groups of ``epochs`` epochs as training does (without its crops) and count what they serve.

    Augmentation draws from the same stream in the original's order, so from the second epoch on a
    training run has other groups than these, of the same distribution.
    """
    train, group_size = config.train, config.network.group_size
    sampler = GroupSampler(labels, group_size=group_size, groups_per_batch=train.batch_size // group_size,
                           pairing=pairing, order=train.order, seed=train.seed, lonely=train.lonely,
                           names=names)
    parts = []
    for _ in range(epochs):
        sampler.next_epoch()
        parts.append(sampler.account())
    return PairingAccount(pairing, np.sum([part.served for part in parts], axis=0),
                          [part.dropped for part in parts], [part.groups for part in parts],
                          sum(part.pairs for part in parts), sum(part.pairs_without_class for part in parts),
                          np.sum([part.pairs_by_class for part in parts], axis=0), parts[0].images_by_class,
                          len(sampler.lonely_images))


def describe(account: PairingAccount) -> str:
    """One paragraph: used, dropped, pairs, times served."""
    times, counts = np.unique(account.served, return_counts=True)
    shown = ", ".join(f"{count} {'never' if time == 0 else f'{time}x'}"
                      for time, count in zip(times[:6], counts[:6]))
    if len(times) > 6:
        shown += f", ... at most {times[-1]}x"
    span = (f"{min(account.dropped)} to {max(account.dropped)}" if account.epochs > 1
            else f"{account.dropped[0]}")
    images = len(account.served)
    return (f"{account.pairing}: {images} images, {account.epochs} epoch(s) of "
            f"{np.mean(account.groups):.0f} groups; "
            f"{images - np.mean(account.dropped):.1f} used and {span} dropped an epoch; {account.lonely} "
            "without any partner; "
            f"{account.pairs} pairs, {account.pairs_without_class} of them without a common class\n"
            f"  served over all epochs: {shown}")


def class_table(accounts: Sequence[PairingAccount], class_names: Sequence[str]) -> str:
    """A row a class: its images, and for each pairing the pairs an epoch that share it."""
    headings = ("class", "images", *(f"pairs, {account.pairing}" for account in accounts))
    rows = [(name, str(accounts[0].images_by_class[index]),
             *(f"{account.pairs_by_class[index] / account.epochs:.1f}" for account in accounts))
            for index, name in enumerate(class_names) if index]
    return text_table(headings, rows)


def figures(account: PairingAccount, class_names: Sequence[str]) -> Dict[str, Any]:
    """The account as plain numbers."""
    times, counts = np.unique(account.served, return_counts=True)
    return {"pairing": account.pairing, "images": len(account.served), "epochs": account.epochs,
            "groups": account.groups, "dropped": account.dropped, "lonely": account.lonely,
            "pairs": account.pairs, "pairs_without_class": account.pairs_without_class,
            "served": {int(time): int(count) for time, count in zip(times, counts)},
            "classes": {name: {"images": int(account.images_by_class[index]), "pairs": int(
        account.pairs_by_class[index])} for index, name in enumerate(class_names) if index}}


def draw(accounts: Sequence[PairingAccount], class_names: Sequence[str], stream: IO[bytes]) -> None:
    """Left: pairs an epoch by class, beside the images that hold it. Right: how often images were served."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
    positions, width = np.arange(1, len(class_names)), 0.8 / (len(accounts) + 1)
    left.bar(positions - 0.4 + width / 2, accounts[0].images_by_class[1:], width, color="lightgray",
             label="images that hold it")
    for number, account in enumerate(accounts, 1):
        left.bar(positions - 0.4 + (number + 0.5) * width, account.pairs_by_class[1:] / account.epochs, width,
                 label=f"pairs an epoch, {account.pairing}")
        times, counts = np.unique(account.served, return_counts=True)
        right.plot(times, counts, marker="o", markersize=9 - 2 * number, label=account.pairing)
    left.set_xticks(positions, class_names[1:], rotation=60, ha="right")
    left.set(yscale="log", ylabel="images, pairs")
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(accounts) + 1, frameon=False)
    right.set(yscale="log", xlabel=f"times served in {accounts[0].epochs} epoch(s)", ylabel="images")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend()
    for axes in (left, right):
        axes.grid(axis="y", alpha=0.3)
    figure.savefig(stream, format="png", dpi=100)
