"""How numbers are written in a report: always the same way, readable aloud, nothing more exact than it is."""

MINUS = "\N{MINUS SIGN}"
ARROW = "\N{RIGHTWARDS ARROW}"


def number(value: float) -> str:
    """Three significant digits: 0.0713, 12.4, 1,530; very small ones as 4.1e-5."""
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        text = f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    elif size >= 999.5:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", MINUS)


def percent(value: float) -> str:
    """A share in [0, 1] as 46.1%."""
    return f"{100 * value:.1f}%".replace("-", MINUS)


def points(value: float) -> str:
    """A difference of two shares in percentage points, always with its sign: +17.3."""
    text = f"{100 * value:+.1f}".replace("-", MINUS)
    return "0.0" if text[1:] == "0.0" else text


def signed(value: float) -> str:
    """A difference with its sign and three significant digits."""
    text = number(abs(value))
    return text if value == 0 else f"{'+' if value > 0 else MINUS}{text}"


def relative(was: float, now: float) -> str:
    """A change in per cent of what was: -4%; empty where it rounds to nothing or there was nothing."""
    change = round(100 * (now - was) / abs(was)) if was else 0
    return f"{signed(change)}%" if change else ""


def duration(seconds: float) -> str:
    """48 s, 9 min 31 s, 2 h 05 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
