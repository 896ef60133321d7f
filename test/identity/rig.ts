/** What the identity tests share: a small configuration, a refusal caught, and a look for leaks in it. */
import { inspect } from 'node:util';
import { expect, vi } from 'vitest';
import { type Config, type ConfigInput, parseConfig } from '../../src/config.ts';
import { ProxyError } from '../../src/errors.ts';

/** A configuration with these providers and one upstream, `main`, with roles `authenticated` and `analyst`. */
export function configWith(
  providers: ConfigInput['providers'],
  settings: Partial<ConfigInput> = {},
): Config {
  const roles = { authenticated: { slots: 1 }, analyst: { slots: 1 } };
  const main = { host: '127.0.0.1', database: 'app', secret: { env: 'SECRET' }, roles };
  return parseConfig({ providers, upstreams: { main }, ...settings });
}

/** The ProxyError that `promise` rejects with; anything else fails the test. */
export async function refusalOf(promise: Promise<unknown>): Promise<ProxyError> {
  const outcome = await promise.then(
    () => 'accepted',
    (error: unknown) => error,
  );
  expect(outcome).toBeInstanceOf(ProxyError);
  return outcome as ProxyError;
}

/** Tries `check` until it passes, for at most 10 s: the machine may be busy with other tests. */
export async function eventually(check: () => unknown): Promise<void> {
  await vi.waitFor(check, { timeout: 10_000, interval: 10 });
}

/** All that can reach the client of `error`. */
export function sentToClient(error: ProxyError): object {
  const { message, detail, hint, silent, frame, spec } = error;
  return { message, detail, hint, silent, frame, sqlstate: spec.sqlstate, sent: spec.sent };
}

/** The sentence that the log gets. */
export function reasonOf(error: ProxyError): string {
  expect(error.cause).toBeInstanceOf(Error);
  return (error.cause as Error).message;
}

/** Fails where anything in `error`, its cause and its stack included, holds a piece of `token` or one of `secrets`. */
export function expectNoLeak(
  error: ProxyError,
  token: string,
  secrets: readonly string[] = [],
): void {
  const everything = inspect(error, { depth: null, showHidden: true });
  const pieces = token.split('.').flatMap((part) => [part.slice(0, 24), part.slice(-24)]);
  for (const secret of [...secrets, ...pieces.filter((piece) => piece.length >= 12)]) {
    expect(everything).not.toContain(secret);
  }
}
