"""Rounds as TensorBoard scalars, beside the records (the extra ``tensorboard``)."""

import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, Self

from fedact.config.errors import check_extra
from fedact.storage.rows import Row
from fedact.storage.run_folder import RunFolder

OF_ROUND = (
    "accuracy", "client_accuracy", "unheld_accuracy", "forgotten", "loss", "worst_client_accuracy", "mean_client_accuracy",
    "held_out_client_accuracy", "peak_bytes_max", "saved_bytes_max", "seconds",
)  # fmt: skip
OF_CLIENTS = ("train_loss", "accuracy", "peak_bytes", "saved_bytes", "device_bytes", "upload_bytes")


class TensorBoardLog:
    """Writes one folder of events a method into a run's folder. Use as a context manager."""

    def __init__(self, folder: RunFolder, methods: Iterable[str], done: dict[str, int], score: str = "accuracy") -> None:
        """score: the name of the run's score."""
        check_extra("tensorboard", "--tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.score = score.replace(" ", "_")
        self.writers: dict[str, Any] = {}
        self.stack = ExitStack()
        for method in methods:
            place = folder.tensorboard(method)
            # A killed process may have left a round too few or too many: the records know.
            if place.is_dir():
                shutil.rmtree(place)
            self.writers[method] = SummaryWriter(str(place))
            self.stack.callback(self.writers[method].close)
        clients: list[Row] = []
        for row in folder.rows() if done else []:
            if row["kind"] == "client":
                clients.append(row)
            elif row["kind"] == "round":
                self.on_round(row, clients)
                clients = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def on_round(self, row: Row, clients: list[Row]) -> None:
        """Write a finished round."""
        writer, step = self.writers[row["method"]], row["round"]
        scalars = {f"round/{name}": row[name] for name in OF_ROUND if row.get(name) is not None}
        for name in OF_CLIENTS:
            if values := [client[name] for client in clients if client.get(name) is not None]:
                scalars[f"clients/{name}_mean"] = sum(values) / len(values)
        if clients:
            scalars["clients/failed"] = sum(client["status"] == "failed" for client in clients)
        for name, value in scalars.items():
            writer.add_scalar(name.replace("accuracy", self.score), value, step)
        writer.flush()
