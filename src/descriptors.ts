/**
 * How many clients the file descriptors of this process are enough for, so that it never has to do without one.
 *
 * Without descriptors the system closes newcomers before anybody can say why, and no session can be opened or cancelled.
 */
import { readFileSync } from 'node:fs';
import type { Config } from './config.ts';

/** What a process may have open for clients. */
export interface Room {
  /** Clients that may log in: `limits.maxClients`, or fewer. */
  readonly clients: number;
  /** Their sockets, and those of others who have not said yet who they are. */
  readonly sockets: number;
}

// What a process has open anyway, and what comes and goes: files, keys, the control connection, lookups, cancels.
const OWN = 64;

/** The limit of this process, as the kernel has it; Infinity where it does not say. Node raises it as far as it may. */
export function descriptorLimit(): number {
  try {
    const limits = readFileSync('/proc/self/limits', 'utf8');
    return Number(/^Max open files +(\d+)/m.exec(limits)?.[1] ?? Infinity);
  } catch {
    return Infinity;
  }
}

/** What so many descriptors leave room for: a client has a socket, and a session has one more to its upstream. */
export function roomFor(config: Config, limit: number = descriptorLimit()): Room {
  const { maxClients, maxUnauthenticated } = config.limits;
  const free = Math.max(limit - OWN, 4);
  const sessions = Math.min(mostSessions(config), free / 2);
  const sockets = Math.floor(Math.min(maxClients + maxUnauthenticated, free - sessions));
  const strangers = Math.min(maxUnauthenticated, Math.floor(sockets / 4));
  return { clients: Math.min(maxClients, sockets - strangers), sockets };
}

function mostSessions({ upstreams }: Config): number {
  const each = Object.values(upstreams).map(({ pool, roles }) => {
    const most = Object.values(roles).map(({ slots, maxConnections = slots }) => maxConnections);
    return Math.min(
      pool.maxConnections ?? Infinity,
      most.reduce((sum, one) => sum + one, 0),
    );
  });
  return each.reduce((sum, one) => sum + one, 0);
}
