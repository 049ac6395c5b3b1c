"""Ends a run as Ctrl-C does, after a round is finished."""

from fedact.federation import server


def stopping_after(number: int):
    finish = server.PartialFedAvg.finish_round

    def finish_and_stop(self, server_round, arrays):
        result = finish(self, server_round, arrays)
        if server_round == number:
            raise KeyboardInterrupt
        return result

    return finish_and_stop
