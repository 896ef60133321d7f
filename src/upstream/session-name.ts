/**
 * Puts the id of a session's log lines into its application_name, where PostgreSQL's own log and pg_stat_activity show it.
 *
 * It is SET before the client speaks, and not part of the StartupMessage, which another client's session may be used again
 * with. So RESET and DISCARD ALL return to the client's own name, and a client may set any name it likes: whoever must be
 * sure goes by `backendPid` and the time.
 */
import { encodeStatement } from '../wire/frontend.ts';
import { ask } from './ask.ts';
import type { UpstreamConnection } from './connect.ts';

const SET = "select pg_catalog.set_config('application_name', $1, false)";
// NAMEDATALEN - 1: PostgreSQL cuts longer names.
const MAX_BYTES = 63;

/** The client's own name, cut where it has to be, and behind it the id, in 63 bytes: `psql pgjot:<id>`. */
export function sessionName(own: string, id: string): string {
  const mark = `pgjot:${id}`;
  // What is not printable ASCII PostgreSQL would turn into more bytes than there were.
  const kept = own.replaceAll(/[^ -~]/g, '?').slice(0, MAX_BYTES - mark.length - 1);
  return kept === '' ? mark : `${kept} ${mark}`;
}

/**
 * Gives a session that nobody has spoken on yet such a name; costs one round trip.
 *
 * @throws {ProxyError} as `ask`.
 */
export async function nameSession(
  connection: UpstreamConnection,
  settings: ReadonlyMap<string, string>,
  id: string,
  signal: AbortSignal,
): Promise<void> {
  const own = settings.get('application_name') ?? '';
  await ask(connection, encodeStatement(SET, [sessionName(own, id)]), signal);
}
