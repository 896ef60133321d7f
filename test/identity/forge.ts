/** A forge for hostile tokens: signs, with the key of a real issuer, what that issuer would never write. */
import type { Issuer } from '../support/issuer.ts';

/** A claim whose value no refusal may repeat. */
export const MARK = 'mark-that-must-not-appear';

/** The time at which forged tokens are good, in milliseconds since the epoch. */
export const NOW = Date.UTC(2026, 0, 1);

/** Tokens of `issuer`, good but for what is asked for. */
export class Forge {
  readonly #issuer: Issuer;

  constructor(issuer: Issuer) {
    this.#issuer = issuer;
  }

  /** The text of a good header, with these members replaced. */
  header(changes: object = {}): string {
    return JSON.stringify({ alg: 'RS256', kid: this.#issuer.key('RS256').kid, ...changes });
  }

  /** The text of good claims, with these replaced; undefined leaves one out. */
  payload(changes: object = {}): string {
    const { issuer: iss, audience: aud } = this.#issuer;
    return JSON.stringify({
      iss,
      aud,
      sub: 'alice',
      exp: NOW / 1000 + 3600,
      mark: MARK,
      ...changes,
    });
  }

  /** Signs these two texts with the RSA key. */
  sign(header: string, payload: string | Buffer): string {
    return this.#issuer.mintRaw(header, payload, { alg: 'RS256' });
  }

  good(): string {
    return this.sign(this.header(), this.payload());
  }

  withHeader(changes: object): string {
    return this.sign(this.header(changes), this.payload());
  }

  withPayload(changes: object): string {
    return this.sign(this.header(), this.payload(changes));
  }

  /** A good token whose number `claim` is this text, which JSON.stringify would not write. */
  withNumber(claim: string, text: string): string {
    const payload = this.payload({ [claim]: 0 }).replace(`"${claim}":0`, `"${claim}":${text}`);
    return this.sign(this.header(), payload);
  }
}
