"""The sentence tree: diverse beam search, one sentence per level.

From every open node `num_beam_groups` streams run in lock step. At each step a stream takes the likeliest token after a
penalty for every earlier stream of its node that chose the same token at this step (diverse beam search, Vijayakumar et al.
2016, arXiv 1610.02424, with one beam per group, as CSR's sampler uses it). A stream ends at a full stop, at the end token,
or at its length limit; `keep` then selects the new sentences that keep growing.

All trees share one prefill: the keys and values of image and prompt exist once (inference/prefix_cache), those of a
sentence once, in its node. A stream that has ended leaves the batch. Nodes hold token ids, so nothing is tokenised again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby, pairwise

import mlx.core as mx
import numpy as np
from jaxtyping import Float

from mlx_visalign.inference.prefix_cache import Continuations, KeysValues, Prefix, extend
from mlx_visalign.models.decoder import Decoder
from mlx_visalign.utils.schema import require


@dataclass(frozen=True)
class Growth:
    """How a tree grows.

    num_beam_groups    streams from every node, 1 and up
    diversity_penalty  nats off for every earlier stream that chose the same token at the same step, 0 and up
    sentence_tokens    most tokens in one node; a longer sentence continues in the next one
    max_tokens         an answer of this many tokens or more grows no further

    The first two are named as in transformers' group beam search.
    """

    num_beam_groups: int = 5
    diversity_penalty: float = 3.0
    sentence_tokens: int = 70
    max_tokens: int = 256

    def __post_init__(self) -> None:
        require(
            self,
            num_beam_groups=(self.num_beam_groups >= 1, "1 or more"),
            diversity_penalty=(self.diversity_penalty >= 0, "0 or more"),
            sentence_tokens=(self.sentence_tokens >= 1, "1 or more"),
            max_tokens=(self.max_tokens >= 1, "1 or more"),
        )


@dataclass(frozen=True)
class Stops:
    """The tokens that end a sentence: full stop, end token."""

    full_stop: int
    end: int

    def __contains__(self, token: int) -> bool:
        return token in (self.full_stop, self.end)


@dataclass(frozen=True, eq=False)
class Node:
    """One sentence, or the root, which has no tokens.

    prompt     the row of the prefix
    stream     which of its parent's streams it came from; stream 0 is never penalised
    ids        its tokens, the full stop or end token included
    logps      log p(token | all before it), in nats
    penalised  the same minus the penalties
    final      the answer is complete: ended by the model, or full
    """

    prompt: int
    parent: "Node | None" = None
    stream: int = 0
    ids: tuple[int, ...] = ()
    logps: tuple[float, ...] = ()
    penalised: tuple[float, ...] = ()
    final: bool = False

    @property
    def path(self) -> list["Node"]:
        """The sentences up to this one, without the root."""
        return [] if self.parent is None else [*self.parent.path, self]

    @property
    def answer(self) -> list[int]:
        """The token ids of the answer up to this node."""
        return [token for node in self.path for token in node.ids]


Keep = Callable[[list[list[Node]]], list[list[Node]]]
"""The new sentences of each prompt -> those of them that keep growing. Final ones never do."""


@dataclass(frozen=True)
class Choice:
    """A stream's next token."""

    token: int
    logp: float
    penalised: float


def diverse_step(logps: Float[np.ndarray, "g v"], penalty: float, stops: Stops) -> list[Choice]:
    """One step of one node's streams, in order.

        token_g = argmax of logps_g - penalty * (number of streams before g that voted for the token)

    A stream votes for its token; one that stops votes for its best other token, and has no vote in later steps. (This is
    what transformers 4.37's group beam search does when each group has one beam.)
    """
    votes = np.zeros(len(logps[0]), dtype=np.float32)
    choices = []
    for row in logps:
        scores = row - penalty * votes
        token = int(scores.argmax())
        choices.append(Choice(token, float(row[token]), float(scores[token])))
        while token in stops:
            scores[token] = -np.inf
            token = int(scores.argmax())
        votes[token] += 1
    return choices


def grow(decoder: Decoder, prefix: Prefix, stops: Stops, growth: Growth, keep: Keep) -> list[list[Node]]:
    """Grow one tree for every row of the prefix.

    Returns each tree's sentences, level by level, without the root.
    """
    roots = [Node(prompt) for prompt in range(len(prefix.mask))]
    trees: list[list[Node]] = [[] for _ in roots]
    grower = _Grower(decoder, prefix, stops, growth)
    active = roots
    while active:
        children = grower.level(active)
        level = [[node for node in children if node.prompt == root.prompt] for root in roots]
        for tree, nodes in zip(trees, level, strict=True):
            tree += nodes
        active = [node for nodes in keep(level) for node in nodes]
        grower.forget_all_but(active)
    return trees


@dataclass(frozen=True, eq=False)
class _Stream:
    """A sentence being sampled."""

    parent: Node
    number: int
    choices: list[Choice] = field(default_factory=list)

    def node(self, stops: Stops, growth: Growth) -> Node:
        ids = tuple(choice.token for choice in self.choices)
        full = len(self.parent.answer) + len(ids) >= growth.max_tokens
        logps, penalised = (tuple(c.logp for c in self.choices), tuple(c.penalised for c in self.choices))
        return Node(self.parent.prompt, self.parent, self.number, ids, logps, penalised, full or ids[-1] == stops.end)


class _Grower:
    """Grows one level at a time, and keeps the keys and values that the next level needs.

    A node's last token is read only if the node keeps growing. So the keys and values kept for a node are those of its
    parent's last token and of all its own tokens but the last.
    """

    def __init__(self, decoder: Decoder, prefix: Prefix, stops: Stops, growth: Growth):
        self.decoder, self.prefix, self.stops, self.growth = decoder, prefix, stops, growth
        self.kv: dict[Node, KeysValues] = {}  # one (keys, values) pair a layer, [heads, tokens, d] each

    def level(self, parents: list[Node]) -> list[Node]:
        """The nodes' children, ordered by node and stream."""
        state, branches, start = self._open(parents)
        forks = np.repeat(np.arange(len(parents)), self.growth.num_beam_groups)
        branches, state = branches.pick(forks), state[mx.array(forks)]
        everyone = streams = [_Stream(parent, number) for parent in parents for number in range(self.growth.num_beam_groups)]
        children: dict[_Stream, Node] = {}
        while True:
            self._step(streams, state)
            going = np.array([not self._is_done(stream) for stream in streams])
            for row in np.flatnonzero(~going).tolist():
                children[streams[row]] = node = streams[row].node(self.stops, self.growth)
                if not node.final:
                    self.kv[node] = [(_own(k, row, start), _own(v, row, start)) for k, v in branches.kv]
            if not going.any():
                break
            streams = [stream for stream, goes_on in zip(streams, going, strict=True) if goes_on]
            last = mx.array([stream.choices[-1].token for stream in streams])[:, None]
            branches = branches if going.all() else branches.pick(np.flatnonzero(going))
            states, branches = extend(self.decoder, branches, last, np.ones(last.shape, dtype=bool))
            state = states[:, 0]
        return [children[stream] for stream in everyone]

    def forget_all_but(self, nodes: list[Node]) -> None:
        """Drop cached keys and values of all other paths."""
        needed = {node for leaf in nodes for node in leaf.path}
        self.kv = {node: kv for node, kv in self.kv.items() if node in needed}

    def _open(self, nodes: list[Node]) -> tuple[Float[mx.array, "n e"], Continuations, int]:
        """Nodes of one level as a batch: the state that predicts their next token, the cache, and its length."""
        owners, paths = np.array([node.prompt for node in nodes]), [node.path for node in nodes]
        if not paths[0]:
            nothing = [(_nothing(keys, len(nodes)), _nothing(values, len(nodes))) for keys, values in self.prefix.kv]
            branches = Continuations(self.prefix, owners, np.zeros((len(nodes), 0), dtype=bool), nothing)
            return branches.state, branches, 0
        lengths = np.array([len(node.answer) - 1 for node in nodes])
        mask = np.arange(lengths.max()) < lengths[:, None]
        kv = [
            (self._suffixes(paths, layer, 0, lengths), self._suffixes(paths, layer, 1, lengths))
            for layer in range(len(self.decoder.layers))
        ]
        last = mx.array([[node.ids[-1]] for node in nodes])
        states, branches = extend(
            self.decoder, Continuations(self.prefix, owners, mask, kv), last, np.ones(last.shape, dtype=bool)
        )
        return states[:, 0], branches, mask.shape[1]

    def _suffixes(self, paths: list[list[Node]], layer: int, side: int, lengths: np.ndarray) -> mx.array:
        """The keys (side 0) or values (1) of complete paths in one layer, right-padded: [n, heads, s, d]."""
        rows = []
        for path, length in zip(paths, lengths.tolist(), strict=True):
            whole = mx.concatenate([self.kv[node][layer][side] for node in path], axis=1)
            rows.append(mx.pad(whole, [(0, 0), (0, int(lengths.max()) - length), (0, 0)]))
        return mx.stack(rows)

    def _step(self, streams: list[_Stream], state: Float[mx.array, "n e"]) -> None:
        """Give every stream its next token."""
        logits = self.decoder.head(state).astype(mx.float32)
        logps = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        for _, family in groupby(range(len(streams)), key=lambda row: id(streams[row].parent)):
            rows = list(family)
            for row, choice in zip(rows, diverse_step(logps[rows], self.growth.diversity_penalty, self.stops), strict=True):
                streams[row].choices.append(choice)

    def _is_done(self, stream: _Stream) -> bool:
        return stream.choices[-1].token in self.stops or len(stream.choices) == self.growth.sentence_tokens


def _own(array: mx.array, row: int, start: int) -> mx.array:
    """One row's new tokens, copied: a view would keep the whole batch alive."""
    copy = mx.contiguous(array[row, :, start:])
    mx.eval(copy)
    return copy


def _nothing(array: mx.array, rows: int) -> mx.array:
    """Keys or values of zero tokens, for `rows` rows."""
    return mx.zeros((rows, array.shape[1], 0, array.shape[3]), array.dtype)


def chain(prompt: int, stream: int, ids: list[int], logps: list[float], stops: Stops) -> list[Node]:
    """A complete answer as nodes, one per sentence.

    A tree that never forks. An answer without an end token is not final.
    """
    ends = [place + 1 for place, token in enumerate(ids) if token in stops]
    node, nodes = Node(prompt), []
    for start, end in pairwise([0, *ends, *([len(ids)] if ids[-1] not in stops else [])]):
        some = tuple(logps[start:end])
        node = Node(prompt, node, stream, tuple(ids[start:end]), some, some, ids[end - 1] == stops.end)
        nodes.append(node)
    return nodes
