"""What moves numbers and moves them back: a pair of reshapes, or of permutations, with nothing left between them.

`lin(x).flatten(0, 1)`, a batch norm, `reshape_as`: once the batch norm is gone, two operators are left that do nothing
together. `undone(graph, node)` gives both, and idle nodes between them, if the second is `node` and what it makes has,
by proof, the shape of what the first has read. Numbers keep their order in a reshape, so the shape is all there is to
prove. What is not proved stays.
"""

from __future__ import annotations

from bnfold.graph import N, Reason, V, View
from bnfold.travel import Permute, Reshape, Same, Shape


def undone(graph: View[N, V], node: N) -> tuple[N, ...]:
    """The operators that do nothing together, the first of them first, `node` last; none where that is not proved."""
    back = graph.read(node)
    if not isinstance(back, (Permute, Reshape)) or not graph.uses(graph.outputs(node)[0]):
        return ()
    between, idle = behind_idle(graph, graph.inputs(node)[0])
    first = graph.producer(between) if is_read_once(graph, between) else None
    if first is None or not _undoes(graph.read(first), back):
        return ()
    return (first, *reversed(idle), node) if _may_stand_for(graph, graph.inputs(first)[0], first, node) else ()


def _undoes(first: object, second: object) -> bool:
    match first, second:
        case Permute(there), Permute(back):
            return len(there) == len(back) and all(there[back[axis]] == axis for axis in range(len(there)))
        case Reshape() as there, Reshape() as back:
            if there.demands:
                return False
            alike = back.like is not None and back.like == there.source
            return alike or is_shape(back.asked, there.before)
    return False


def is_shape(given: Shape, shape: Shape) -> bool:
    """Whether a value that was reshaped as `given` has the same shape as one that has as many numbers. One size may be
    left to compute: it is what the others leave, which are not zero, or none could be computed."""
    if not shape or len(given) != len(shape):
        return False
    open_axes = [axis for axis in range(len(shape)) if given[axis] is None or given[axis] != shape[axis]]
    if not open_axes:
        return True
    others = [size for axis, size in enumerate(shape) if axis != open_axes[0]]
    size = given[open_axes[0]]
    if len(open_axes) > 1 or 0 in others or (isinstance(size, int) and size != -1):
        return False
    return size == -1 or all(isinstance(other, int) for other in others)


def _may_stand_for(graph: View[N, V], value: V, first: N, last: N) -> bool:
    """Whether who reads the result may read the value: nobody writes either, and it can take the name of an output."""
    result = graph.outputs(last)[0]
    seen = [*graph.uses(value), *graph.uses(graph.outputs(first)[0]), *graph.uses(result)]
    if Reason.MUTATED_IN_PLACE in seen:
        return False
    is_output = any(isinstance(use, Reason) for use in graph.uses(result))
    return not is_output or (is_read_once(graph, value) and graph.producer(value) is not None)


def is_read_once(graph: View[N, V], value: V) -> bool:
    """Whether one operator reads the value, and nothing that is no operator."""
    uses = graph.uses(value)
    return len(uses) == 1 and not isinstance(uses[0], Reason) and uses[0][1] is not None


def behind_idle(graph: View[N, V], value: V) -> tuple[V, list[N]]:
    """The value behind nodes that do nothing, and those nodes; what others read too is not passed."""
    found: list[N] = []
    while is_read_once(graph, value) and (node := graph.producer(value)) is not None:
        reading = graph.read(node)
        if not isinstance(reading, Same) or not reading.idle:
            break
        value = graph.inputs(node)[0]
        found.append(node)
    return value, found
