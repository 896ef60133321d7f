/** The secret of an upstream at each stage of its rotation, and clients that work meanwhile. */
import { writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { expect } from 'vitest';
import { parseConfig, type ConfigInput } from '../../src/proxy.ts';
import { derivePassword } from '../../src/session-sql/credentials.ts';
import { runCli, type CliResult } from '../support/cli.ts';
import { recordUpstreamSecret } from '../support/record.ts';
import { SECRET, startStack, until, type Stack, type StackOptions } from '../support/stack.ts';

export const NEW_SECRET = 'the-new-secret-for-tests-of-at-least-32-characters';

/** A stack, and its configuration at each stage of a rotation. */
export class Scene {
  readonly stack: Stack;
  readonly folder: string;
  readonly oldFile: string;
  readonly newFile: string;

  constructor(stack: Stack) {
    this.stack = stack;
    this.oldFile = (stack.config.upstreams['main'] as { secret: { file: string } }).secret.file;
    this.folder = dirname(this.oldFile);
    this.newFile = join(this.folder, 'new-secret');
  }

  static async start(options: StackOptions): Promise<Scene> {
    const scene = new Scene(await startStack(options));
    recordUpstreamSecret(NEW_SECRET, { authenticated: { slots: options.slots ?? 20 } });
    await writeFile(scene.newFile, NEW_SECRET, { mode: 0o600 });
    return scene;
  }

  config(stage: 'before' | 'both' | 'after'): ConfigInput {
    const { main, ...others } = this.stack.config.upstreams;
    const secrets = {
      before: { secret: { file: this.oldFile } },
      both: { secret: { file: this.newFile }, previousSecret: { file: this.oldFile } },
      after: { secret: { file: this.newFile } },
    }[stage];
    return {
      ...this.stack.config,
      upstreams: { main: { ...(main as ConfigInput['upstreams'][string]), ...secrets }, ...others },
    };
  }

  reload(stage: 'before' | 'both' | 'after'): void {
    this.stack.proxy.reload(parseConfig(this.config(stage)));
  }

  /** `pgjot rotate-secret` as an administrator with this configuration. */
  async rotate(
    stage: 'before' | 'both' | 'after',
    args: readonly string[] = [],
    config = this.config(stage),
    upstream = 'main',
  ): Promise<CliResult> {
    return runCli(...(await this.command(args, config, upstream)));
  }

  async command(args: readonly string[], config: ConfigInput, upstream = 'main') {
    const file = join(this.folder, 'rotate.json');
    await writeFile(file, JSON.stringify(config));
    const { host, port, user, password } = this.stack.primary.superuser;
    const url = `postgres://${user}:${password}@${host}:${port}/app`;
    return [
      ['rotate-secret', upstream, '--config', file, ...args],
      { cwd: this.folder, env: { PGJOT_ADMIN_URL: url } },
    ] as const;
  }

  /** What PostgreSQL says to a login with the password that derives from this secret. */
  async login(secret: string, role = 'pgjot_control'): Promise<string> {
    const { host, port } = this.stack.primary;
    const password = derivePassword(secret, role);
    const client = new pg.Client({ host, port, database: 'app', user: role, password });
    client.on('error', () => {});
    try {
      await client.connect();
      return 'accepted';
    } catch (error) {
      return (error as pg.DatabaseError).code ?? 'unknown';
    } finally {
      await client.end().catch(() => {});
    }
  }

  events(name: string): Record<string, unknown>[] {
    return this.stack.logs
      .map((line) => JSON.parse(line) as Record<string, unknown>)
      .filter(({ event }) => event === name);
  }
}

/** Clients that work: half of them keep their session, half of them sign in again and again. */
export function workers(scene: Scene, count: number) {
  const failures: unknown[] = [];
  let statements = 0;
  let logins = 0;
  const state = { stopped: false };
  const work = async (number: number): Promise<void> => {
    const sub = number % 2 === 0 ? 'alice' : 'bob';
    const staysIn = number < count / 2;
    while (!state.stopped) {
      const client = await scene.stack.connect(sub);
      logins++;
      const isWorking = () => staysIn && !state.stopped;
      do {
        const { rows } = await client.query('select auth.user_id() as me');
        statements++;
        if (rows[0].me !== sub) throw new Error(`was ${rows[0].me}, not ${sub}`);
        await delay(5);
      } while (isWorking());
      await client.end();
    }
  };
  const all = Array.from({ length: count }, (_, number) =>
    work(number).catch((error: unknown) => void failures.push(error)),
  );
  return {
    counts: () => ({ statements, logins }),
    async stop() {
      state.stopped = true;
      await Promise.all(all);
      return { failures, statements, logins };
    },
    /** Resolves when everybody has gone on for a while. */
    async goOn() {
      const before = { statements, logins };
      await until(
        () => statements > before.statements + count && logins > before.logins + count / 2,
        30_000,
      );
    },
  };
}

/** Nothing that a command has printed is a secret, or derives from one. */
export function expectNoSecret({ stdout, stderr }: CliResult): void {
  const outputs = stdout + stderr;
  for (const secret of [SECRET, NEW_SECRET]) {
    expect(outputs).not.toContain(secret);
    for (const role of ['pgjot_control', 'pgjot_authenticated_1'])
      expect(outputs).not.toContain(derivePassword(secret, role));
  }
  expect(outputs).not.toContain('SCRAM-SHA-256$');
}
