// A peer that signs what no honest program would send: envelopes of docs/http.md with any message.

import { createHash, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';

const P = 2n ** 256n - 2n ** 32n - 977n;
const N = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n;
const G = [0x79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798n, 0x483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8n];

const mod = (a, m) => ((a % m) + m) % m;

/** The inverse modulo P. */
function inverse(a) {
    let [r, next] = [P, mod(a, P)];
    let [t, following] = [0n, 1n];
    while (next) {
        const q = r / next;
        [r, next] = [next, r - q * next];
        [t, following] = [following, t - q * following];
    }
    return mod(t, P);
}

function add(a, b) {
    if (!a) return b;
    if (!b) return a;
    if (a[0] === b[0] && a[1] !== b[1]) return null;
    const slope = a[0] === b[0] ? 3n * a[0] * a[0] * inverse(2n * a[1]) : (b[1] - a[1]) * inverse(b[0] - a[0]);
    const x = mod(slope * slope - a[0] - b[0], P);
    return [x, mod(slope * (a[0] - x) - a[1], P)];
}

function times(point, scalar) {
    let result = null;
    for (let p = point; scalar > 0n; scalar >>= 1n, p = add(p, p)) if (scalar & 1n) result = add(result, p);
    return result;
}

const sha256 = (...parts) => createHash('sha256').update(Buffer.concat(parts)).digest();
const bytes = (number) => Buffer.from(number.toString(16).padStart(64, '0'), 'hex');
const number = (buffer) => BigInt(`0x${buffer.toString('hex')}`);
function tagged(tag, ...parts) {
    const name = sha256(Buffer.from(tag));
    return sha256(name, name, ...parts);
}

/** A signature by BIP-340. */
export function sign(digest, secret) {
    const point = times(G, secret);
    const d = point[1] & 1n ? N - secret : secret;
    const masked = bytes(d ^ number(tagged('BIP0340/aux', randomBytes(32))));
    const k = mod(number(tagged('BIP0340/nonce', masked, bytes(point[0]), digest)), N);
    const r = times(G, k);
    const e = mod(number(tagged('BIP0340/challenge', bytes(r[0]), bytes(point[0]), digest)), N);
    return Buffer.concat([bytes(r[0]), bytes(mod((r[1] & 1n ? N - k : k) + e * d, N))]).toString('hex');
}

/** JCS, for texts, integers, lists and objects. */
function canonical(value) {
    if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
    if (value && typeof value === 'object') {
        return `{${Object.keys(value).sort().map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`).join(',')}}`;
    }
    return JSON.stringify(value);
}

/** Sends a message of the owner of this identity file, correctly signed, to a service: the status. */
export async function send(file, url, service, message) {
    const { did, secretKey } = JSON.parse(readFileSync(file, 'utf8'));
    const envelope = {
        v: 1, from: did, to: service, timestamp: Math.floor(Date.now() / 1000), nonce: randomBytes(16).toString('hex'),
        message: { from: did, to: service, ...message },
    };
    const sig = sign(sha256(Buffer.from(canonical(envelope))), BigInt(`0x${secretKey}`));
    const answer = await fetch(`${url}/v1/messages`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ ...envelope, sig }) });
    return [answer.status, await answer.text()];
}
