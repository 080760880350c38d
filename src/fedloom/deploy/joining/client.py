"""Client: dials out to the server, asks for tasks, and answers them until the run is over."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fedloom import __version__
from fedloom.data.dataset import Dataset
from fedloom.deploy.experiment import Experiment, Samples, told
from fedloom.deploy.joining.agreement import Agreement
from fedloom.deploy.joining.memory import Memory
from fedloom.deploy.joining.sent import note
from fedloom.deploy.joining.side import Side, explained
from fedloom.deploy.protocol.facts import NUMBER, OVER, READY, SAMPLES, TRY
from fedloom.deploy.protocol.messages import CHECK, EVALUATE, STOP, TRAIN, Hello, Receipt, Task, Upload, Welcome
from fedloom.deploy.sealing.legs import IDENTITIES, SECURE
from fedloom.deploy.sealing.part import Part, Terms, keys_of
from fedloom.deploy.seam import Channel, Refused, Unreachable
from fedloom.deploy.trust.identity import Keys
from fedloom.errors import DataError, FedloomError, UsageError

T = TypeVar("T")
LAST_WORD = 120.0
"""After the last round a server is waited for so many seconds at most: it may have been started again just then."""

THANKS = 3
"""So often a client tries to say that it has heard that the run is over."""


@dataclass(frozen=True)
class Manners:
    """How a client deals with its server.

    Attributes:
        wait: How long one call waits for a task, in seconds.
        beat: Seconds between two signs of life while it trains.
        least: Seconds before the first try again where the server cannot be reached; they double ...
        most: ... up to so many.
        patience: So many seconds without the server end the client.
    """

    wait: float = 20.0
    beat: float = 5.0
    least: float = 0.2
    most: float = 10.0
    patience: float = float("inf")


PATIENT = Manners()


class Client:
    """One client of a run.

    Args:
        channel: To the server.
        name: What it wants to be called.
        data: Its samples.
        folder: Where it keeps its state and its log.
        agree: Shown what will be done; says whether to go on.
        code: The function that makes the model, where the run needs one and its user allows it.
        number: The number that it would like to have.
        where: The device to train on.
        manners: How it deals with the server.
        keys: Its key pair, which a run with secure aggregation needs.
        say: Told what its user should know.
    """

    def __init__(
        self,
        channel: Channel,
        name: str,
        data: Dataset,
        folder: Path,
        agree: Callable[[Agreement], bool] = lambda _: True,
        *,
        code: str | None = None,
        number: int | None = None,
        where: str | None = "cpu",
        manners: Manners = PATIENT,
        keys: Keys | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._channel, self._name, self._data, self._folder = channel, name, data, folder
        self._agree, self._code, self._number, self._where = agree, code, number, where
        self._manners, self._keys, self._say = manners, keys, say
        self._part: Part | None = None
        self._stopped = threading.Event()
        self._side: Side | None = None
        self._agreed: Agreement | None = None
        self._doing, self._last = "", False

    def run(self) -> str:
        """Take part until the run is over; returns why it ended, in the server's words.

        Raises:
            UsageError: Its user does not agree, or the model's code is not here.
            Refused: The server does not want it.
            Unreachable: The server could not be reached for too long.
            DataError: The samples do not fit the run.
        """
        beating = threading.Thread(target=self._beat, daemon=True)
        beating.start()
        try:
            self._register()
            return self._rounds()
        except (UsageError, DataError) as error:
            self._leave(str(error))
            raise
        except KeyboardInterrupt:
            self._leave("it was stopped, and may come back")
            raise
        finally:
            self._stopped.set()

    def _heard(self) -> None:
        """Tell the server that it need not wait for this client any more; where that is lost, it waits a little."""
        for _ in range(THANKS):
            try:
                return self._channel.heartbeat(OVER)
            except FedloomError:
                time.sleep(self._manners.least)
        return None

    def _leave(self, reason: str) -> None:
        try:
            self._channel.leave(reason)
        except FedloomError:
            return  # it is going anyway

    def _register(self) -> None:
        facts = {SAMPLES: Samples.of(self._data).to_json(), NUMBER: self._number}
        hello = Hello(self._name, __version__, samples=len(self._data), facts=facts)
        welcome = self._patiently(lambda: self._channel.register(hello))
        found = Agreement.of(welcome, len(self._data))
        if self._agreed is None:
            Samples.from_json(welcome.experiment.get(SAMPLES)).fit(self._data)  # now, and not when all others are there
            self._doing = "reading what is asked"
            if not self._agree(found):
                raise UsageError("you did not agree: nothing was sent but the number and the shape of your samples")
            self._agreed = found
        elif found != self._agreed:
            raise UsageError("the server has changed what you agreed to: join again to see what is asked now")
        if welcome.experiment.get(READY):
            self._side = self._made(welcome)
        else:
            self._say("waiting until all clients are there")

    def _made(self, welcome: Welcome) -> Side:
        assert self._agreed is not None
        experiment = Experiment.read(welcome).allowed(self._code)
        self._agreed.hold(experiment)
        memory = Memory.of(self._folder, welcome.run, welcome.client)
        if self._agreed.least:
            self._part = self._taking_part(welcome, self._agreed, memory)
        holdout = self._agreed.holdout
        return Side.make(experiment, welcome.client, self._data, memory, self._say, self._where, holdout)

    def _taking_part(self, welcome: Welcome, agreed: Agreement, memory: Memory) -> Part:
        if self._keys is None:
            raise UsageError("secure aggregation needs a key of this client, and it has none")
        privacy, known = agreed.tables["privacy"], keys_of(welcome.blobs.get(IDENTITIES, b""))
        bits, dropouts = int(privacy["secure_bits"]), float(privacy["secure_dropouts"])
        terms = Terms(told(welcome), welcome.client, known, bits, dropouts, agreed.least)
        if self._part is not None and self._part.terms == terms:
            return self._part  # it may be in the middle of a sum
        return Part(terms, self._keys.private, self._keys.public, memory, self._say)

    def _rounds(self) -> str:
        while True:
            self._doing = ""
            try:
                task = self._patiently(lambda: self._channel.next_task(self._manners.wait))
            except Unreachable:
                if not self._last:
                    raise
                return f"the last round is done, and the server has been gone for {LAST_WORD:g} s"
            if task is None:
                continue
            if task.kind == STOP:
                self._heard()
                return task.reason
            if task.kind == CHECK:
                self._check(task)
            elif task.kind == TRAIN:
                self._train(task)
            elif task.kind == EVALUATE:
                self._evaluate(task)
            elif task.kind == SECURE:
                self._leg(task)
            else:
                raise DataError(f"the server asks for '{task.kind}', which this fedloom does not know: update it")

    def _check(self, task: Task) -> None:
        self._doing = "getting ready"
        try:
            self._register()
            assert self._side is not None
            answer = self._side.check(trial=bool(task.facts.get(TRY)))
        except (Refused, Unreachable):
            raise
        except Exception as error:  # the server has no other way to know
            refusal = Upload(0, task=CHECK, failure="dropped", reason=explained(error))
            self._patiently(lambda: self._channel.upload(refusal))
            if isinstance(error, FedloomError) and not isinstance(error, DataError | UsageError):
                return  # it is for the server to say what becomes of the run
            raise
        self._patiently(lambda: self._channel.upload(answer))

    def _train(self, task: Task) -> None:
        side, agreed = self._ready()
        agreed.check(task)
        self._doing = f"training in round {task.round}"
        began = time.perf_counter()
        answer = side.answer(task)
        seconds = time.perf_counter() - began
        if self._part is not None and not answer.failure:
            self._part.ready(task)
        self._doing = f"sending in round {task.round}"
        receipt = self._patiently(lambda: self._channel.upload(answer))
        self._last = receipt.accepted and task.round == agreed.rounds and not agreed.holdout
        self._note(task, answer, receipt, seconds)

    def _ready(self) -> tuple[Side, Agreement]:
        if self._side is None:
            self._register()
        if self._side is None or self._agreed is None:
            raise DataError("the server asks to train, and has not said what")
        return self._side, self._agreed

    def _evaluate(self, task: Task) -> None:
        """Evaluate models on the samples that are kept apart."""
        side, agreed = self._ready()
        agreed.check_evaluation(task)
        self._doing = f"evaluating after round {task.round}"
        answer = side.evaluate(task)
        receipt = self._patiently(lambda: self._channel.upload(answer))
        self._last = receipt.accepted and task.round == agreed.rounds
        if answer.failure or not receipt.accepted:
            self._say(f"round {task.round}: not evaluated here ({answer.reason or receipt.reason})")
        note(self._folder, task, answer, receipt)

    def _leg(self, task: Task) -> None:
        """Answer one step of a secure sum."""
        if self._side is None:
            self._register()
        if self._part is None:
            raise DataError("the server asks for a secure sum, and you agreed to none")
        self._doing = f"taking part in the secure sum of round {task.round}"
        answer = self._part.answer(task)
        receipt = self._patiently(lambda: self._channel.upload(answer))
        if answer.failure or not receipt.accepted:
            self._say(f"round {task.round}: not in the secure sum ({answer.reason or receipt.reason})")
        note(self._folder, task, answer, receipt)

    def _note(self, task: Task, answer: Upload, receipt: Receipt, seconds: float) -> None:
        text = f"round {task.round}: trained for {seconds:.3g} s, "
        if answer.failure:
            self._say(f"round {task.round}: {answer.reason}")
        else:
            self._say(text + ("sent" if receipt.accepted else f"not used ({receipt.reason})"))
        note(self._folder, task, answer, receipt)

    def _patiently(self, call: Callable[[], T]) -> T:
        """Make a call; while the server cannot be reached, make it again."""
        pause, since = self._manners.least, time.monotonic()
        patience = min(self._manners.patience, LAST_WORD) if self._last else self._manners.patience
        told = False
        while True:
            try:
                found = call()
            except Unreachable as error:
                if time.monotonic() - since > patience:
                    raise
                if not told and time.monotonic() - since > 1:
                    self._say(f"{error}; trying again")
                    told = True
                time.sleep(pause * random.uniform(0.5, 1.0))  # not all come back at once
                pause = min(2 * pause, self._manners.most)
                continue
            if told:
                self._say("the server is there again")
            return found

    def _beat(self) -> None:
        while not self._stopped.wait(self._manners.beat):
            if self._doing:
                try:
                    self._channel.heartbeat(self._doing)
                except FedloomError:
                    continue  # whoever waits for an answer will notice
