"""Each client's own model, a file a client: what it trained goes on from round to round, and nobody averages it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedact.storage import checkpoints
from fedact.storage.run_folder import RunFolder
from fedact.training.averaging import overlay

_FILE = re.compile(r"-client-(\d+)-round-(\d+)\.safetensors$")


@dataclass(eq=False)
class OwnModels:
    """The clients' models of one method's rows. rounds: by client, the one in which it trained last."""

    folder: RunFolder
    method: str
    rounds: dict[int, int] = field(default_factory=dict)

    def resume(self, done: int) -> None:
        """Find each client's model after the last finished round, and remove what a killed process left of a later one."""
        for file in self.folder.client_checkpoints(self.method):
            found = _FILE.search(file.name)
            client, number = map(int, found.groups()) if found else (0, done + 1)
            if number > done:
                file.unlink()
            else:
                self.rounds[client] = max(number, self.rounds.get(client, 0))
        self.prune()

    def tensors(self, client: int, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a client's model: the initial tensors, with those that it has trained in their places."""
        if client not in self.rounds:
            return dict(start)
        file = self.folder.client_checkpoint(self.method, client, self.rounds[client])
        own = checkpoints.load(file)
        checkpoints.check_fit(own, {name: tensor for name, tensor in start.items() if name in own}, f"checkpoint {file}")
        return overlay(start, own)

    def keep(self, client: int, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Write what a client has trained in a round; its model before stays until ``prune``."""
        checkpoints.save(self.folder.client_checkpoint(self.method, client, number), tensors)
        self.rounds[client] = number

    def prune(self) -> None:
        """Remove all models but the clients' last: their rounds are finished."""
        kept = {self.folder.client_checkpoint(self.method, *each) for each in self.rounds.items()}
        for file in self.folder.client_checkpoints(self.method):
            if file not in kept:
                file.unlink()
