/**
 * A crowd of clients at work, for faults to be injected under: each its own user, with short sessions, so that logins go on all the
 * time. Whatever fails is written down with its time; whatever succeeds is checked to be the user's own.
 */
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';

/** A statement, or a login, that failed. */
export interface Failure {
  /** By `performance.now()`: when it began and when it had failed. */
  readonly from: number;
  readonly to: number;
  readonly user: string;
  readonly stage: 'login' | 'statement';
  /** The SQLSTATE, the system's code, or the driver's message where there is neither. */
  readonly code: string;
}

/** Where and as whom a crowd works. */
export interface CrowdOptions {
  readonly users: readonly string[];
  /** Asked before each login, so that a proxy may move and keys be rotated. */
  readonly connection: (user: string) => pg.ClientConfig;
  /** Statements of a session, and the pause before each. */
  readonly statements: number;
  readonly pauseMs: number;
}

/** A crowd at work. Dispose of it to send it home. */
export interface Crowd extends AsyncDisposable {
  readonly failures: readonly Failure[];
  /** Answers that were not the user's own. */
  readonly wrong: readonly string[];
  /** Rows that each user was told are committed. */
  readonly committed: ReadonlyMap<string, number>;
  readonly logins: number;
  readonly statements: number;
  /** Resolves when every user for whom `among` holds has logged in, and got an answer, after this call. */
  turnedOver(among?: (user: string) => boolean, ms?: number): Promise<void>;
  /** Sends everybody home; resolves when they have gone. */
  leave(): Promise<void>;
}

const PAUSE_AFTER_FAILURE_MS = 100;

/** Sends the crowd to work. The table `todos` of the demo must be there. */
export function gather(options: CrowdOptions): Crowd {
  const { users, statements, pauseMs } = options;
  const over = new AbortController();
  const failures: Failure[] = [];
  const wrong: string[] = [];
  const committed = new Map<string, number>();
  const counts = { logins: 0, statements: 0 };
  /** When each user last began a login that came to an answer. */
  const served = new Map<string, number>();

  const attempt = async <T>(
    user: string,
    stage: Failure['stage'],
    work: () => Promise<T>,
  ): Promise<T | undefined> => {
    const from = performance.now();
    try {
      return await work();
    } catch (error) {
      const { code, message } = error as { code?: string; message: string };
      failures.push({ from, to: performance.now(), user, stage, code: code ?? message });
      await delay(PAUSE_AFTER_FAILURE_MS);
      return undefined;
    }
  };

  const session = async (user: string): Promise<void> => {
    const began = performance.now();
    const client = new pg.Client(options.connection(user));
    // What ends a session between two statements fails the next one, with this for its reason.
    let lost: Error | undefined;
    client.on('error', (error) => {
      lost ??= error;
    });
    const connected = await attempt(user, 'login', async () => {
      await client.connect();
      return true;
    });
    if (connected === undefined) return void client.end().catch(() => {});
    counts.logins++;
    for (let n = 0; n < statements && !over.signal.aborted; n++) {
      await delay(pauseMs * (0.5 + Math.random()));
      const answered = await attempt(user, 'statement', async () => {
        if (lost !== undefined) throw lost;
        const answer = n === 0 ? await add(client) : await look(client, user);
        if (answer?.me !== user || answer.others > 0) {
          wrong.push(`${user} got ${JSON.stringify(answer)}`);
        }
        if (n === 0) committed.set(user, (committed.get(user) ?? 0) + 1);
        return true;
      });
      if (answered === undefined) break;
      counts.statements++;
      served.set(user, began);
    }
    await client.end().catch(() => {});
  };

  const working = users.map(async (user) => {
    while (!over.signal.aborted) await session(user);
  });
  const leave = async (): Promise<void> => {
    over.abort();
    await Promise.all(working);
  };

  return {
    failures,
    wrong,
    committed,
    get logins() {
      return counts.logins;
    },
    get statements() {
      return counts.statements;
    },
    async turnedOver(among = () => true, ms = 60_000) {
      const since = performance.now();
      const waiting = () =>
        users.filter((user) => among(user) && (served.get(user) ?? -Infinity) < since);
      while (waiting().length > 0) {
        if (performance.now() - since > ms) {
          throw new Error(`not served for ${ms} ms: ${waiting().join(', ')}`);
        }
        await delay(50);
      }
    },
    leave,
    [Symbol.asyncDispose]: leave,
  };
}

interface Answer {
  readonly me: string;
  /** Rows of others that can be seen. */
  readonly others: number;
}

async function add(client: pg.Client): Promise<Answer | undefined> {
  const text = "insert into todos (task) values ('work') returning user_id as me, 0 as others";
  return (await client.query<Answer>(text)).rows[0];
}

async function look(client: pg.Client, user: string): Promise<Answer | undefined> {
  const others = '(select count(*) from todos where user_id <> $1)::int as others';
  return (await client.query<Answer>(`select auth.user_id() as me, ${others}`, [user])).rows[0];
}
