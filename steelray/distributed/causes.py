"""Why a piece of work on another process failed, in one line."""

SECTIONS = "exception was the direct cause of the following exception:", "another exception occurred:"
RAYS_OWN = "UserCodeException"
"""What Ray Data wraps around the failure of a step."""
ADVICE = "Failed to apply UDF transform after", "To change retry attempts"
"""How the lines begin that Ray Data adds to a failure, on settings of its own."""


def cause_in_one_line(error: BaseException) -> str:
    """The last line of the traceback of what was raised first by our code, without Ray's wrappers around it."""
    sections: list[list[str]] = [[]]
    for line in str(error).splitlines():
        if line.strip().endswith(SECTIONS):
            sections.append([])
        elif line.strip() and not line.strip().startswith(ADVICE):
            sections[-1].append(line.strip())
    told = [lines for lines in sections if lines and not any(RAYS_OWN in line for line in lines)]
    return told[-1][-1] if told else type(error).__name__
