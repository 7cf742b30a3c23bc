class Fault(Exception):
    """Something a person can mend: names the key, its value and the way out."""

    exit_code = 2

    def __init__(self, key: str, value: object, way_out: str):
        self.key, self.value, self.way_out = key, value, way_out
        super().__init__(f"{key} is {value!r}: {way_out}")


class Refused(Fault):
    """A bundle, statement or record that must not be trusted; `reason` is a fixed word for metrics."""

    def __init__(self, reason: str, key: str, value: object, way_out: str):
        self.reason = reason
        super().__init__(key, value, way_out)


class GateRefused(Fault):
    exit_code = 3
