/**
 * The end of a successful login: AuthenticationOk, what the upstream reported, our own cancel key, one ReadyForQuery.
 */
import { AuthenticationOk, encodeBackendKeyData, encodeReadyForQuery } from '../wire/backend.ts';
import { send, type Client } from './stream.ts';

/** What the client is told. */
export interface Welcome {
  /** ParameterStatus and NoticeResponse frames, byte for byte as the upstream sent them. */
  readonly greeting: readonly Buffer[];
  /** The key by which this client can ask us to cancel; never the upstream's. */
  readonly cancelKey: { readonly processId: number; readonly secretKey: Buffer };
}

/** Says it all in one write. Only called when the upstream session is ready and its identity is known to be right. */
export function welcome(client: Client, { greeting, cancelKey }: Welcome): Promise<void> {
  return send(
    client.stream,
    Buffer.concat([
      AuthenticationOk,
      ...greeting,
      encodeBackendKeyData(cancelKey.processId, cancelKey.secretKey),
      encodeReadyForQuery('I'),
    ]),
  );
}
