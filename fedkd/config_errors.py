"""From pydantic's first complaint to one line: the key, the value, what is allowed, the nearest."""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from fedkd.errors import FedkdError, did_you_mean


def explain(error: ValidationError, model: type[BaseModel], where: str) -> FedkdError:
    """The FedkdError for the first complaint of `error`, raised while reading `where`."""
    first = error.errors()[0]
    *parents, last = [str(part) for part in first["loc"]] or [""]
    section, path = _descend(model, parents)
    key = ".".join([*path, last])
    context = first.get("ctx", {})
    match first["type"]:
        case "extra_forbidden":
            known = sorted(section.model_fields) if section else []
            return FedkdError(
                f"unknown key {key!r} in {where}",
                value=first["input"],
                allowed=", ".join(known),
                fix=did_you_mean(last, known),
            )
        case "union_tag_invalid":
            tags = context["expected_tags"].replace("'", "")
            return FedkdError(
                f"unknown name for {key!r} in {where}",
                value=context["tag"],
                allowed=tags,
                fix=did_you_mean(context["tag"], tags.split(", ")),
            )
        case "union_tag_not_found":
            return FedkdError(f"{key!r} in {where} needs a name", fix=f'set {key}.name = "…"')
        case "missing":
            return FedkdError(f"{key!r} is missing in {where}", fix=f"set {key}")
    message = first["msg"].removeprefix("Value error, ")
    return FedkdError(
        f"bad value for {key!r} in {where}",
        value=first["input"],
        allowed=message[0].lower() + message[1:],
    )


def _tag(section: type[BaseModel] | None) -> str | None:
    field = section.model_fields.get("name") if section else None
    return field.default if field and isinstance(field.default, str) else None


def _descend(model: type[BaseModel], loc: list[str]) -> tuple[type[BaseModel] | None, list[str]]:
    """Follow pydantic's location; drop the union tags that it puts into the path."""
    section: type[BaseModel] | None = model
    choices: list[type[BaseModel]] = []
    path: list[str] = []
    for part in loc:
        tagged = [choice for choice in choices if _tag(choice) == part]
        if tagged:
            section, choices = tagged[0], []
            continue
        path.append(part)
        field = section.model_fields.get(part) if section else None
        choices = _models(field.annotation) if field else []
        section = choices[0] if len(choices) == 1 else None
    return section, path


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The Section classes that a field's type allows."""
    if get_origin(annotation) is Annotated:
        return _models(get_args(annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for choice in get_args(annotation) for model in _models(choice)]
