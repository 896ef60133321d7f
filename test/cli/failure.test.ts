import { afterEach, describe, expect, it, vi } from 'vitest';
import { closeAll } from '../../src/cli/failure.ts';

describe('closeAll', () => {
  afterEach(() => {
    process.exitCode = undefined;
    vi.restoreAllMocks();
  });

  it('closes in order, each after the one before', async () => {
    const closed: string[] = [];
    const closes = ['proxy', 'issuer', 'postgres'].map((name) => async () => {
      closed.push(`${name} begins`);
      await new Promise((resolve) => setImmediate(resolve));
      closed.push(`${name} has ended`);
    });

    await closeAll(closes);

    expect(closed).toEqual([
      'proxy begins',
      'proxy has ended',
      'issuer begins',
      'issuer has ended',
      'postgres begins',
      'postgres has ended',
    ]);
    expect(process.exitCode).toBeUndefined();
  });

  it('closes the rest where one rejects and another throws, and says so', async () => {
    const said = vi.spyOn(console, 'error').mockReturnValue();
    const last = vi.fn<() => Promise<void>>().mockResolvedValue();

    await closeAll([
      () => Promise.reject(new Error('the proxy is stuck')),
      () => {
        throw new Error('the issuer is too');
      },
      last,
    ]);

    expect(last).toHaveBeenCalledOnce();
    expect(said.mock.calls).toEqual([
      ['pgjot: while stopping: the proxy is stuck'],
      ['pgjot: while stopping: the issuer is too'],
    ]);
    expect(process.exitCode).toBe(1);
  });
});
