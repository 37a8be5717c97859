"""Bearer tokens of people and apps, and join tokens of machines: JWTs signed ES256, checked offline."""

from __future__ import annotations

import base64
import json
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from nearmesh.errors import InvalidInput, JoinRefused, Unauthenticated
from nearmesh.ids import Kind, check_label

Role = Literal["client", "data", "operator"]
ROLES: tuple[str, ...] = get_args(Role)

# Clocks of clients and sites are allowed to differ by this much.
LEEWAY_S = 30

# Tokens that one server remembers to have held; about half a kilobyte each.
HELD_TOKENS = 4096

# Where a gateway says whose token it has checked; only a gateway is believed.
SUBJECT_HEADER = "nearmesh-subject"

_ALGORITHM = "ES256"
_ACCESS, _JOIN = "nearmesh", "nearmesh-join"


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who a bearer token speaks for."""

    subject: str
    role: Role
    # Whose vectors it reaches, and no others; empty: as the role may.
    namespace: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinTicket:
    """What a join token grants, and what its holder needs to reach the control plane for the first time."""

    id: str
    mesh: str
    kind: Kind
    name: str
    site: str
    region: str
    control_plane: str
    control_plane_mesh: str
    ca_pem: bytes


class TokenIssuer:
    """Signs tokens with the mesh's key; lives in the control plane alone."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, mesh: str) -> None:
        self._key = key
        self._mesh = mesh
        jwk = json.loads(ECAlgorithm.to_jwk(key.public_key()))
        self._kid = jwk["x"][:12]
        self.jwks_json = json.dumps({"keys": [jwk | {"kid": self._kid, "alg": _ALGORITHM, "use": "sig"}]})

    def access(self, subject: str, role: str, *, now_s: float, lifetime_s: float, namespace: str = "") -> str:
        """A bearer token; with a `namespace` it reaches the vectors of that one alone.

        Raises InvalidInput for an unknown role, an empty subject, a lifetime of 0 or less, or what is no namespace.
        """
        if role not in ROLES:
            raise InvalidInput(f"role {role!r} is not one of {', '.join(ROLES)}")
        if not subject or not 0 < lifetime_s < math.inf:
            raise InvalidInput(f"a token needs a subject (got {subject!r}) and a lifetime above 0 (got {lifetime_s})")
        bound = {"namespace": check_label("namespace", namespace)} if namespace else {}
        return self._sign({"sub": subject, "role": role, "aud": _ACCESS, **bound}, now_s, lifetime_s)

    def join(self, ticket: JoinTicket, *, now_s: float, lifetime_s: float) -> str:
        """A join token; that it is used once only is for the registry to see to."""
        claims = {
            "aud": _JOIN,
            "jti": ticket.id,
            "kind": ticket.kind,
            "sub": ticket.name,
            "site": ticket.site,
            "region": ticket.region,
            "cp": ticket.control_plane,
            "cpm": ticket.control_plane_mesh,
            "ca": base64.b64encode(ticket.ca_pem).decode(),
        }
        return self._sign(claims, now_s, lifetime_s)

    def _sign(self, claims: dict[str, Any], now_s: float, lifetime_s: float) -> str:
        claims |= {"iss": self._mesh, "iat": int(now_s), "exp": int(now_s + lifetime_s)}
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM, headers={"kid": self._kid})


class TokenVerifier:
    """Checks tokens with the mesh's public keys alone; `jwks_json` may be replaced while running.

    A signature is checked once for each token and key set, and the end of its life at every call: apps send the same
    token with each request, and the signature would take a fifth of a node's time on small ones.
    """

    def __init__(self, jwks_json: str, mesh: str, clock: Callable[[], float] = time.time) -> None:
        self._mesh = mesh
        self._clock = clock
        self._jwks_json = ""
        # Tokens that held, by when they end; the one that was first seen longest ago leaves first.
        self._held: dict[str, tuple[float, Bearer]] = {}
        self.update(jwks_json)

    def update(self, jwks_json: str) -> None:
        """Takes a new key set. Raises InvalidInput when it is not one."""
        if jwks_json == self._jwks_json:
            return
        try:
            self._keys = {key.key_id: key for key in jwt.PyJWKSet.from_json(jwks_json).keys}
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError) as error:
            raise InvalidInput(f"not a JSON Web Key Set: {error}") from None
        self._jwks_json = jwks_json
        self._held.clear()

    def access(self, token: str) -> Bearer:
        """Who the bearer token speaks for. Raises Unauthenticated."""
        ends_s, bearer = self._held.get(token, (0.0, None))
        if bearer and self._clock() < ends_s:
            return bearer
        claims = self._verify(token, _ACCESS)
        if claims.get("role") not in ROLES:
            raise Unauthenticated(f"the token's role {claims.get('role')!r} is not one of {', '.join(ROLES)}")
        bearer = Bearer(claims["sub"], claims["role"], str(claims.get("namespace", "")))
        self._held[token] = (claims["exp"] + LEEWAY_S, bearer)
        if len(self._held) > HELD_TOKENS:
            del self._held[next(iter(self._held))]
        return bearer

    def join(self, token: str) -> JoinTicket:
        """What a join token grants. Raises JoinRefused."""
        try:
            return _ticket(self._verify(token, _JOIN))
        except Unauthenticated as error:
            raise JoinRefused(f"join refused: {error.message}") from None
        except (KeyError, ValueError) as error:
            raise JoinRefused(f"join refused: the token does not hold, it lacks {error}") from None

    def _verify(self, token: str, audience: str) -> dict[str, Any]:
        try:
            key = self._keys.get(jwt.get_unverified_header(token).get("kid"))
            if key is None:
                raise Unauthenticated("the token was not signed by this mesh")
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                audience=audience,
                issuer=self._mesh,
                leeway=LEEWAY_S if audience == _ACCESS else 0,
                options={"require": ["exp", "iat", "sub", "aud", "iss"]},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired; ask an operator for a new one") from None
        except jwt.PyJWTError as error:
            raise Unauthenticated(f"the token does not hold: {error}") from None
        return claims


def mesh_of(token: str) -> str:
    """Which mesh a token is of, unverified: for its holder. Empty for what is no token."""
    try:
        return str(jwt.decode(token.strip(), options={"verify_signature": False}).get("iss", ""))
    except jwt.PyJWTError:
        return ""


def read_join_token(token: str) -> JoinTicket:
    """What a join token says, unverified: for the machine that holds it, before it knows the mesh's keys.

    Raises InvalidInput when it is not a join token.
    """
    try:
        claims = jwt.decode(token.strip(), options={"verify_signature": False})
        if claims.get("aud") != _JOIN:
            raise InvalidInput("this is a bearer token, not a join token; `nearmesh node token` makes one")
        return _ticket(claims)
    except (jwt.PyJWTError, KeyError, ValueError) as error:
        raise InvalidInput(f"not a join token: {error}; `nearmesh node token` makes one") from None


def _ticket(claims: dict[str, Any]) -> JoinTicket:
    return JoinTicket(
        id=claims["jti"],
        mesh=claims["iss"],
        kind=claims["kind"],
        name=claims["sub"],
        site=claims["site"],
        region=claims["region"],
        control_plane=claims["cp"],
        control_plane_mesh=claims["cpm"],
        ca_pem=base64.b64decode(claims["ca"]),
    )


def new_token_id() -> str:
    """A fresh id for a join token."""
    return uuid.uuid4().hex
