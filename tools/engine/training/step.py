"""One training step, exactly as the original's: gradients summed over devices, SGD with momentum,
decay and speed by parameter.
"""
from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Union

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from mxnet.contrib import amp

from cian.symbols.cian import CIAN, Branches
from cian.symbols.layers import block_depthwise, constant_parts, reorder_sums
from cian.symbols.losses import CIANLoss
from cian.symbols.params import AUXILIARY, averaged
from cian.tools.engine.config import TrainConfig
from cian.tools.engine.training.distributed import Workers


class NotFinite(ArithmeticError):
    """A loss or a gradient is not a finite number; the message says which."""


class Sgd(gluon.Trainer):
    """Gluon's SGD whose momentum can be read and set by parameter name.

    Gradients are summed over devices and divided by the whole batch; every device then updates its
    own copy in the same way, so the copies stay equal to the last bit. Speed and decay of a
    parameter are its ``lr_mult`` and ``wd_mult``.
    """

    def __init__(self, net: gluon.HybridBlock, momentum: float, weight_decay: float,
                 kvstore: Union[str, mx.kv.KVStore] = "device") -> None:
        # The others stay out: on the first step gluon copies the first device's values of all that
        # it is given to the other devices, and with them would go their moving statistics.
        trained = {name: param for name, param in net.collect_params().items() if param.grad_req != "null"}
        super().__init__(trained, "sgd", {"momentum": momentum, "wd": weight_decay}, kvstore=kvstore,
                         update_on_kvstore=False)

    def allreduce_grads(self) -> None:
        """Sum the gradients over the devices of all workers.

        In the first step a worker gets the first one's parameters from the store. Until they are here,
        no gradient may go there: Gluon lets it overtake them, and the store would answer with gradients.
        """
        if not self._kv_initialized:
            self._init_kvstore()
            self._init_params()
            if self._distributed:
                mx.nd.waitall()
                self._kvstore._barrier()
        super().allreduce_grads()

    def gradients(self) -> Dict[str, mx.nd.NDArray]:
        """Gradients of the trained parameters on the first device."""
        return {param.name: param.list_grad()[0] for param in self._params}

    def momentum(self) -> Dict[str, np.ndarray]:
        """Momentum of every parameter that has been updated."""
        states = self._updaters[0].states
        return {param.name: states[index].asnumpy()
                for index, param in enumerate(self._params) if states.get(index) is not None}

    def set_momentum(self, momentum: Mapping[str, np.ndarray]) -> None:
        """Continue from :meth:`momentum`; parameters that it does not name start without one."""
        for context, updater in zip(self._contexts, self._updaters):
            for index, param in enumerate(self._params):
                if param.name in momentum:
                    updater.states[index] = mx.nd.array(momentum[param.name], ctx=context, dtype=np.float32)
                    updater.states_synced[index] = True


class Trainer:
    """A network, its loss and its optimiser on one or several devices.

    Parameters
    ----------
    net : initialised on ``contexts``, with :func:`~cian.symbols.params.configure_training` done.
    loss : of the same number of classes and the same affinity.
    contexts : devices; each takes its equal block of a batch, and the losses normalise within it.
    settings : momentum, weight_decay and seed are used.
    stored : the data of a batch are features below the first part of the backbone that trains.
    mixed : scale the loss as mixed precision needs it, see :mod:`~cian.tools.engine.training.precision`.
    reordered : on CPUs, compute in the order that is fastest there (see
        :func:`~cian.symbols.layers.reorder_sums`); without it values are the original's to the last
        bit.
    workers : the processes that share each batch; default this one alone.
    """

    def __init__(self, net: CIAN, loss: CIANLoss, contexts: Sequence[mx.Context], settings: TrainConfig,
                 mixed: bool = False, reordered: bool = True, stored: bool = False,
                 workers: Optional[Workers] = None) -> None:
        self.net, self.loss, self.contexts, self.workers = net, loss, list(contexts), workers or Workers()
        self.optimiser = Sgd(net, settings.momentum, settings.weight_decay, self.workers.store)
        self._seed = settings.seed
        # bn_out runs twice and updates its statistics in the backward pass, in the order in which
        # MXNet gets to the two calls. A CPU works on one operator at a time, so theirs is fixed. A
        # GPU works on several at once: there the whole backward pass becomes one bulk, which needs
        # a static shape, and that nearly doubles the memory of features (benchmarks/compare.py).
        graph: Dict[str, Any] = {"static_alloc": True}
        if all(context.device_type == "cpu" for context in self.contexts):
            block_depthwise(net)
            reorder_sums(net, reordered)
        else:
            graph.update(static_shape=True, backward_bulk_size=100000)
        self.net.hybridize(**graph)
        self.loss.hybridize()
        self._stored = stored
        self._branches: Optional[Branches] = None
        if stored:
            self._branches = Branches(net, constant_parts(net.backbone))
            self._branches.hybridize(**graph)
        elif all(param.grad_req == "null" for param in net.backbone.collect_params().values()):
            self._branches = Branches(net)
            self._branches.hybridize(**graph)
        self._scaler: Optional[amp.loss_scaler.LossScaler] = None
        if mixed:
            amp.init_trainer(self.optimiser)
            self._scaler = self.optimiser._amp_loss_scaler

    def step(self, parts: Sequence[mx.io.DataBatch], rate: float, number: int) -> Dict[str, float]:
        """Learn from one batch.

        Parameters
        ----------
        parts : each device's block: ``data`` [images (B, 3, S, S)], ``label`` [seeds (B, s, s),
            image labels (B, C)], on that device.
        rate : learning rate of the backbone.
        number : of the step, from 0; together with the seed it decides what dropout drops.

        Returns
        -------
        dict
            The values of :attr:`CIANLoss.PARTS`, added up over the devices of all workers.

        Raises
        ------
        NotFinite
            A loss or a gradient is not finite. No parameter was changed.
        """
        mx.random.seed(step_seed(self._seed, number, self.workers.rank))
        if self.net.affinity is not None:
            self.net.affinity.choose_folding(parts[0].label[0].size)
        with autograd.record():
            results = [self.loss(self._forward(part.data[0]), *part.label) for part in parts]
            totals = [total for total, _ in results]
            with amp.scale_loss(totals,
                                self.optimiser) if self._scaler else contextlib.nullcontext(totals) as scaled:
                heads = list(scaled)
        autograd.backward(heads)
        self.optimiser.allreduce_grads()
        devices = self.workers.share_losses(np.stack([counts.asnumpy() for _, counts in results]))
        values = np.sum(devices, axis=0, dtype=np.float64)
        named = dict(zip(CIANLoss.PARTS, values.tolist()))
        self._check(named)
        self.optimiser.set_learning_rate(rate)
        self.optimiser.update(self.workers.num * sum(part.data[0].shape[0] for part in parts))
        self.workers.start_clock()
        return named

    def _forward(self, images: mx.nd.NDArray) -> List[mx.nd.NDArray]:
        """The logits of the branches. A backbone that does not train leaves nothing in memory for a
        backward pass.
        """
        if self._branches is None:
            return self.net(images)
        if self._stored:
            return self._branches(images)
        with autograd.pause(train_mode=True):
            features = self.net.backbone(images)
        return self._branches(features)

    def _check(self, values: Mapping[str, float]) -> None:
        wrong = [name for name, value in values.items() if not np.isfinite(value)]
        if wrong:
            raise NotFinite("the loss is not finite: " + ", ".join(f"{name} is {values[name]}"
                                                                   for name in wrong))
        # which leaves out the step of a gradient that is not finite, and halves its scale
        if self._scaler is not None:
            if self._scaler.loss_scale < 1:
                raise NotFinite("gradients are not finite in float16 even without scaling the loss")
            return
        gradients = self.optimiser.gradients()
        if not all_finite(gradients.values()):
            first = next(name for name, gradient in gradients.items() if not all_finite([gradient]))
            raise NotFinite(f"the gradient of {first} is not finite")

    def parameters_finite(self) -> bool:
        """Whether every value of the network is a finite number; waits for all work."""
        mx.nd.waitall()
        return all(all_finite(copies)
                   for copies in (param.list_data() for param in self.net.collect_params().values()))

    def state_dict(self) -> Dict[str, Any]:
        """Parameters, momentum, and each device's own moving statistics (of all workers), as NumPy
        arrays; waits for all work, and for the other workers.
        """
        mx.nd.waitall()  # moving statistics are written late, by the backward pass
        parameters = self.net.collect_params()
        return {"parameters": {name: param.list_data()[0].asnumpy()
                               for name, param in parameters.items() if not name.endswith(AUXILIARY)},
                "moving": self._all_moving([{name: param.data(context).asnumpy()
                                             for name, param in parameters.items()
                                             if name.endswith(AUXILIARY)} for context in self.contexts]),
                "momentum": self.optimiser.momentum()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict` of a trainer of the same network on as many devices."""
        parameters = self.net.collect_params()
        for name, value in state["parameters"].items():
            parameters[name].set_data(mx.nd.array(value, dtype=np.float32))
        own = state["moving"][self.workers.rank * len(self.contexts):]
        for context, statistics in zip(self.contexts, own):
            for name, value in statistics.items():
                parameters[name].data(context)[:] = mx.nd.array(value, ctx=context, dtype=np.float32)
        self.optimiser.set_momentum(state["momentum"])

    def _all_moving(self, own: List[Dict[str, np.ndarray]]) -> List[Dict[str, np.ndarray]]:
        """The statistics of the devices of all workers, from those of this one's. What only reads
        its statistics, as the whole backbone does, has the same everywhere.
        """
        changing = [name for name in own[0] if name.startswith("bn_out_")]
        if not changing or self.workers.num == 1:
            return own * self.workers.num
        shape = (len(own), sum(own[0][name].size for name in changing))
        flat = np.concatenate([part[name] for part in own for name in changing])
        rows = self.workers.gather("moving", flat.reshape(shape)).reshape(-1, shape[1])
        ends = np.cumsum([own[0][name].size for name in changing])[:-1]
        return [{**own[0], **dict(zip(changing, np.split(row, ends)))} for row in rows]


def network_values(state: Mapping[str, Any]) -> Dict[str, np.ndarray]:
    """What a parameter file holds, out of :meth:`Trainer.state_dict`: moving statistics are
    averaged over devices.
    """
    moving = state["moving"]
    return {**state["parameters"],
            **{name: averaged([statistics[name] for statistics in moving]) for name in moving[0]}}


def all_finite(arrays: Iterable[mx.nd.NDArray]) -> bool:
    """Whether every value is a finite number, seen by the sums of squares, which cost a quarter of
    MXNet's own check. Arrays whose norm
    is beyond 1.8e19 count as not finite."""
    flat = [array.reshape(-1) for array in arrays]
    squares = [mx.nd.dot(values, values) for values in flat]
    return all(np.isfinite(square.asscalar()) for square in squares)


def step_seed(seed: int, number: int, rank: int = 0) -> int:
    """Seed of MXNet's generators in a step, for each worker another: they cannot be saved, so each
    step begins with its own.
    """
    parts = [seed, number, rank] if rank else [seed, number]
    return int(np.random.SeedSequence(parts).generate_state(1)[0] & 0x7FFFFFFF)


def poly_decay(rate: float, done: float, epochs: int, power: float = 0.9) -> float:
    """The learning rate after ``done`` of the epochs: ``rate * (1 - done / epochs)^power``."""
    return rate * (1.0 - float(done) / epochs) ** power


def learning_rate(settings: TrainConfig, epoch: int, batch: int, batches: int) -> float:
    """:func:`poly_decay` by the epochs done, as in the original code, or by the iterations.

    Parameters
    ----------
    epoch, batch : done so far: whole epochs, and batches of the current one
    batches : of the current epoch
    """
    done = epoch + (batch / batches if settings.lr_decay == "iteration" else 0)
    return poly_decay(settings.lr, done, settings.epochs, settings.lr_power)
