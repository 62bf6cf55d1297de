"""Who attacks: somebody who has a network's weights and aims at one of its heads."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from training.attacks.autoattack import auto_attack
from training.attacks.losses import judge_of, losses_against, targeted, targets_of
from training.attacks.names import CLEAN, NOISE, aim_named, attack_named, auto_named, check_attacks
from training.attacks.worst import worst_case
from training.networks import Network
from training.pixels import from_bytes, gaussian_noise, round_to_bytes

NOISE_STD = 8 / 255  # pixel units; the control is as large as the largest usual eps


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """One head's attacker; `generator` is behind all chance, `sources` are networks by name to transfer from."""

    network: Network
    head: str
    generator: torch.Generator
    sources: Mapping[str, Network] = field(default_factory=dict)

    def attack(self, name: str, pixels: Tensor, labels: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] and labels [B] -> images of the same shape after an attack by name, in floats."""
        method, at, source = name.partition("@")
        if at:
            return self._having(self.sources[source]).attack(method, pixels, labels)
        if method == CLEAN:
            return pixels
        if method == NOISE:
            return gaussian_noise(pixels, NOISE_STD, self.generator)
        if auto := auto_named(method):
            return self._auto_attack(*auto, pixels, labels)
        aim, judge = aim_named(method), judge_of(self.network, self.head)
        loss = aim.loss
        if aim.target is not None:
            with torch.no_grad():
                logits = self.network(pixels, self.head).logits[self.head]
                labels = targets_of(aim.target, logits, labels, self.generator)
            loss, judge = targeted(loss), judge_of(self.network, self.head, wanted=False)
        losses = losses_against(self.network, self.head, loss)
        return worst_case(aim.attack, losses, judge, pixels, labels, self.generator).images

    def attack_bytes(self, name: str, images: Tensor, labels: Tensor) -> Tensor:
        """The same on uint8 images [B, H, W, 3], rounded back to uint8."""
        return images if name == CLEAN else round_to_bytes(self.attack(name, from_bytes(images), labels))

    def _having(self, network: Network) -> "Attacker":
        """The same without these weights, but with those of another network."""
        return Attacker(network=network, head=network.config.heads[0], generator=self.generator)

    def _auto_attack(self, suite: str, level: int, pixels: Tensor, labels: Tensor) -> Tensor:
        """AutoAttack hands back the clean image where it fails or has nothing to do; what is called attacked must be,
        so that image takes PGD instead, unless this would turn a wrong answer right. `level` is eps in 1/255.
        """
        seed = self.generator.initial_seed()
        found = auto_attack(self.network, self.head, pixels, labels, eps=level / 255, seed=seed, name=suite)
        clean = (found == pixels).flatten(1).all(1).nonzero().flatten()
        attack = attack_named(f"pgd10-{level}")
        if attack.eps == 0 or not len(clean):
            return found
        losses, judge = losses_against(self.network, self.head), judge_of(self.network, self.head)
        tried = worst_case(attack, losses, judge, pixels[clean], labels[clean], self.generator)
        with torch.no_grad():
            keep = tried.fooled | judge(pixels[clean], labels[clean])
        found = found.clone()
        found[clean[keep]] = tried.images[keep]
        return found


@dataclass(frozen=True, kw_only=True)
class Attackers:
    """A network's attackers, one for each head, all of whose chance begins at `seed`."""

    network: Network
    sources: Mapping[str, Network] = field(default_factory=dict)
    seed: int = 0

    def on(self, head: str) -> Attacker:
        """The attacker of a head, who begins anew."""
        generator = torch.Generator().manual_seed(self.seed)
        return Attacker(network=self.network, head=head, generator=generator, sources=self.sources)

    def check(self, names: tuple[str, ...]) -> None:
        """Raises OptionError for an attack's name that they would not understand."""
        check_attacks(names, self.sources, self.network)

    def to_device(self) -> torch.device:
        """Bring all networks, as they are used, to the GPU where there is one; returns where they are now. Weights lie
        as in training, channels last: an attack's step takes a third less time on a CPU.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for each in (self.network, *self.sources.values()):
            each.to(device).to(memory_format=torch.channels_last).eval()
        return device
