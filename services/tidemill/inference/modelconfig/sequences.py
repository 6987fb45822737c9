"""Checks of how a configuration has the requests of sequences treated."""

from tidemill import names
from tidemill.api.compat.inference import model_config_pb2 as pb
from tidemill.inference.modelconfig.batches import check_delay, check_preferred
from tidemill.inference.modelconfig.tensors import check_dims, check_name, check_unique, refuse

_CORRELATIONS = (pb.TYPE_UINT64, pb.TYPE_INT64, pb.TYPE_UINT32, pb.TYPE_INT32, pb.TYPE_STRING)
_LISTS = ("int32_false_true", "fp32_false_true", "bool_false_true")
MOST_CANDIDATES = 1 << 16
MOST_STATES = 256


def check_sequence(message: pb.ModelConfig) -> None:
    """Return when sequences can be served so. Raises Invalid."""
    batching = message.sequence_batching
    if batching.iterative_sequence:
        raise refuse("sequence_batching: iterative sequences are not offered")
    check_delay(batching.max_sequence_idle_microseconds, "sequence_batching")
    if batching.HasField("direct"):
        check_delay(batching.direct.max_queue_delay_microseconds, "sequence_batching.direct")
        if not 0 <= batching.direct.minimum_slot_utilization <= 1:
            raise refuse("sequence_batching.direct.minimum_slot_utilization must be in [0, 1]")
    if batching.HasField("oldest"):
        oldest = batching.oldest
        check_preferred(oldest.preferred_batch_size, message.max_batch_size, "sequence_batching.oldest")
        check_delay(oldest.max_queue_delay_microseconds, "sequence_batching.oldest")
        if not 0 <= oldest.max_candidate_sequences <= MOST_CANDIDATES:
            raise refuse(f"sequence_batching.oldest.max_candidate_sequences must be in [0, {MOST_CANDIDATES}]")
    _check_controls(message)
    _check_states(message)


def _check_controls(message: pb.ModelConfig) -> None:
    batching = message.sequence_batching
    check_unique([t.name for t in message.input] + [t.name for t in batching.control_input], "input")
    told: set[int] = set()
    for control_input in batching.control_input:
        check_name(control_input.name, "control_input")
        what = f"control_input '{control_input.name}'"
        if len(control_input.control) != 1:
            raise refuse(f"{what} must have exactly one control, not {len(control_input.control)}")
        control = control_input.control[0]
        if control.kind not in pb.ModelSequenceBatching.Control.Kind.values():
            raise refuse(f"{what} is of an unknown kind")
        if control.kind in told:
            kind = pb.ModelSequenceBatching.Control.Kind.Name(control.kind)
            raise refuse(f"sequence_batching has more than one control_input of {kind}")
        told.add(control.kind)
        _check_control(control, what)


def _check_control(control: pb.ModelSequenceBatching.Control, what: str) -> None:
    given = [name for name in _LISTS if getattr(control, name)]
    if control.kind == pb.ModelSequenceBatching.Control.CONTROL_SEQUENCE_CORRID:
        if given:
            raise refuse(f"{what} tells the correlation id, and so cannot have {given[0]}")
        if control.data_type not in _CORRELATIONS:
            raise refuse(f"{what} must have a data_type of UINT64, INT64, UINT32, INT32 or STRING")
        return
    if control.data_type != pb.TYPE_INVALID:
        raise refuse(f"{what} cannot have a data_type: its values tell it")
    if len(given) != 1 or len(getattr(control, given[0])) != 2:
        raise refuse(f"{what} must have exactly one of {', '.join(_LISTS)}, with exactly two values")


def _check_states(message: pb.ModelConfig) -> None:
    states = message.sequence_batching.state
    if len(states) > MOST_STATES:
        raise refuse(f"sequence_batching may have at most {MOST_STATES} states")
    check_unique([tensor.name for tensor in message.input] + [state.input_name for state in states], "input")
    check_unique((state.output_name for state in states), "state output")
    batched = message.max_batch_size > 0
    for state in states:
        check_name(state.input_name, "state input")
        check_name(state.output_name, "state output")
        what = f"state '{state.input_name}'"
        if state.data_type == pb.TYPE_INVALID or state.data_type not in pb.DataType.values():
            raise refuse(f"{what} must have a data_type")
        check_dims(state.dims, what, batched=batched)
        if len(state.initial_state) > 1:
            raise refuse(f"{what} must have at most one initial_state")
        for initial in state.initial_state:
            check_dims(initial.dims, f"the initial_state of {what}", batched=batched, fixed=True)
            if initial.data_type != state.data_type:
                raise refuse(f"the initial_state of {what} must have its data_type")
            fits = len(initial.dims) == len(state.dims) and all(
                wanted in (-1, given) for wanted, given in zip(state.dims, initial.dims, strict=True)
            )
            if not fits:
                raise refuse(f"the initial_state of {what} must have its dims")
            if initial.WhichOneof("state_data") is None:
                raise refuse(f"the initial_state of {what} must say where its elements come from")
            if initial.HasField("data_file"):
                names.check(initial.data_file, "data_file")
